"""The numbers of an element as tensors: rounding to the nearest one, and the codes that stand for them."""

from functools import cache

import torch
from torch import Tensor

from sqbench.formats.element import ELEMENTS, Integer, Table
from sqbench.formats.format import Format

# For float32 and float64: an integer dtype of that width, the bits of the exponent, and the number of mantissa bits.
LAYOUT = {torch.float32: (torch.int32, 0x7F800000, 23), torch.float64: (torch.int64, 0x7FF0000000000000, 52)}


def nearest_(steps: Tensor, fmt: Format) -> Tensor:
    """Round numbers inside the element's range to the nearest one of the element, in place where that is possible.

    Args:
        steps: numbers in steps of the scale, float32 or float64, from `fmt.smallest` to `fmt.largest`.
    """
    element = ELEMENTS[fmt.element]
    if isinstance(element, Integer):
        return _whole_(steps, fmt)
    if isinstance(element, Table):
        # A sum of steps takes a quarter of the time of a binary search. Every partial sum is exactly a number of the table.
        values, beyond = grid(fmt).to(steps.dtype), torch.empty_like(steps)
        result = (steps * 0).add_(float(values[0]))  # NaN stays NaN
        for middle, step in zip(midpoints(fmt).to(steps.dtype).tolist(), values.diff().tolist(), strict=True):
            result.add_(torch.gt(steps, middle, out=beyond), alpha=step)
        return result
    whole, exponent, mantissa = LAYOUT[steps.dtype]
    # The power of two at or below |x|. Its distance to the next number of the element is 2^-m of it. Adding 1.5 * 2^23 (2^52) of
    # these distances leaves no bits below one distance, so the addition rounds, to nearest with ties to even.
    shift = steps.view(whole).bitwise_and(exponent).view(steps.dtype)
    shift.clamp_(min=2.0**element.least_exponent).mul_(1.5 * 2.0 ** (mantissa - element.mantissa))
    return steps.add_(shift).sub_(shift)


def _whole_(steps: Tensor, fmt: Format) -> Tensor:
    """The nearest integers, in place, by the format's rule of ties."""
    if fmt.ties == "even":
        return steps.round_()
    if fmt.ties == "up":  # of unsigned codes, as llama.cpp rounds: the sum before `floor` is rounded, too
        unsigned = 0.0 if fmt.has_minimum else -fmt.smallest
        return steps.add_(unsigned + 0.5).floor_().sub_(unsigned)
    whole = steps.trunc()
    return steps.sub_(whole).mul_(2).trunc_().add_(whole)


def codes_of(values: Tensor, fmt: Format, signs: Tensor | None) -> Tensor:
    """The codes of numbers of an element: int8 for integers, else uint8 with the bits of the element, its sign bit highest.

    Args:
        values: numbers that are exactly in the element. A NaN gets the code above the largest number, which is NaN in e4m3.
        signs: numbers with the signs of the codes, which zeros have too. Integers need none.
    """
    element = ELEMENTS[fmt.element]
    if isinstance(element, Integer):
        return values.to(torch.int8)
    if isinstance(element, Table):
        return torch.bucketize(values, grid(fmt).to(values), out_int32=True).to(torch.uint8)
    magnitudes = grid(fmt).to(values)
    magnitudes = magnitudes[len(magnitudes) // 2 :]  # ascending from 0, so the place of a number is its code
    code = torch.bucketize(values.abs(), magnitudes, out_int32=True)
    assert signs is not None
    return code.add_(signs.signbit().int() << (fmt.bits - 1)).to(torch.uint8)


def code_dtype(fmt: Format) -> torch.dtype:
    """The dtype that holds a format's codes."""
    return torch.int8 if fmt.is_integer else torch.uint8


def values_of(codes: Tensor, fmt: Format, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for, in steps of the scale."""
    if fmt.is_integer:
        return codes.to(dtype)
    return by_code(fmt.element).to(codes.device, dtype)[codes.int()]


@cache
def by_code(element: str) -> Tensor:
    """The numbers of an element that is not an integer, by code: [2^b] float32. Codes without a number are NaN or infinite."""
    kind = ELEMENTS[element]
    assert not isinstance(kind, Integer)
    codes = torch.arange(2 ** kind.widths[0])
    if isinstance(kind, Table):
        return torch.tensor(kind.values)
    if kind.dtype:
        return codes.to(torch.uint8).view(getattr(torch, kind.dtype)).float()
    mantissa, exponent = codes % 2**kind.mantissa, (codes >> kind.mantissa) % 2**kind.exponent
    normal = (exponent > 0).float()
    power = kind.least_exponent + (exponent - 1).clamp(min=0)
    magnitude = torch.ldexp(normal + mantissa / 2**kind.mantissa, power)
    return torch.where(codes >> (kind.exponent + kind.mantissa) > 0, -magnitude, magnitude)


def grid(fmt: Format) -> Tensor:
    """The different numbers of a format's element that its codes may use, ascending: float64, in steps of the scale."""
    return _grid(fmt.element, fmt.smallest, fmt.largest)


@cache
def _grid(element: str, smallest: float, largest: float) -> Tensor:
    if element == "int":
        return torch.arange(smallest, largest + 1, dtype=torch.float64)
    values = by_code(element).double()
    return (values[values.isfinite()] + 0.0).unique()  # -0 + 0 is 0


def midpoints(fmt: Format) -> Tensor:
    """The numbers half way between neighbours of the grid, ascending: float64."""
    values = grid(fmt)
    return (values[1:] + values[:-1]) / 2
