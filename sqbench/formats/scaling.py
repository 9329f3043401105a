"""From the largest magnitude of a block to its scale, by the rule and in the dtype of a format."""

from math import floor, log2

import torch
from torch import Tensor

from sqbench.formats.element import ELEMENTS, Float
from sqbench.formats.format import Format

E4M3_LARGEST = 448.0
LEAST, MOST = -127, 127  # exponents of e8m0


def power_of_two(amax: Tensor, fmt: Format) -> Tensor:
    """Scales that are powers of two, for the largest magnitudes of blocks: the dtype of `amax`. See `Scale.rule`.

    A block of zeros gets 2^-127. The scale of NaN or infinity is NaN.
    """
    if fmt.scale.rule == "rceil":
        mantissa, exponent = torch.frexp(amax / torch.full_like(amax, fmt.levels))  # mantissa in [0.5, 1)
        exponent = exponent - (mantissa == 0.5).int()
    else:
        mantissa, exponent = torch.frexp(amax)
        exponent = exponent - 1 - floor(log2(fmt.levels))
        if fmt.scale.rule == "ceil":
            exponent = exponent + (mantissa != 0.5)
        elif fmt.scale.rule in ("even", "even_m1"):
            element = ELEMENTS[fmt.element]
            own = element.mantissa if isinstance(element, Float) else fmt.bits - 2
            bits = 1 if fmt.scale.rule == "even_m1" else own
            exponent = exponent + (2 * mantissa >= 2 - 2.0 ** -(bits + 1))
    exponent = torch.where(mantissa == 0, LEAST, exponent).clamp(LEAST, MOST)
    scale = torch.ldexp(torch.ones_like(amax), exponent)
    return torch.where(amax.isfinite(), scale, torch.nan)


def two_levels(amax: Tensor, fmt: Format) -> tuple[Tensor, Tensor | None]:
    """Scales of blocks that are e4m3 times one float32 number for the tensor (NVFP4), and their reciprocals where a tool uses them.

    With a block's largest magnitude b, the tensor's A, and the element's largest number m (6 for e2m1), all in float32:

    - `modelopt`: g = A / (448 m), s = e4m3(b / (m g)) and at least 2^-9. A block of zeros has s = 1. The scale is s g.
    - `torchao`: g = A / (448 m), s = e4m3((b / m) / g) and at least 2^-6. Values are multiplied by (1 / g) / s.
    - `compressed-tensors`: G = (448 m) (1 / A), s = e4m3(G (b / m)), and 0.125 instead of 0. The scale is s / G.
    - `auto-round`: the same G, s = e4m3(G (b (1 / m))). Values are multiplied by r = 1 / (s (1 / G)), and the scale is 1 / r. Where
      s is 0, all values of the block become 0.
    """
    assert fmt.amax is not None, "the format needs the largest magnitude of its tensor"
    largest, whole = torch.full_like(amax, fmt.levels), torch.full_like(amax, fmt.amax or 1.0)
    both = E4M3_LARGEST * largest
    if fmt.scale.order in ("compressed-tensors", "auto-round"):
        over = both * (1 / whole)
        if fmt.scale.order == "auto-round":
            stored = e4m3(over * (amax * (1 / largest)))
            by = 1 / (stored * (1 / over))
            return torch.where(stored == 0, 1.0, 1 / by), torch.where(stored == 0, 0.0, by)
        stored = e4m3(over * (amax / largest))
        return torch.where(stored == 0, 0.125, stored) / over, None
    over = whole / both
    if fmt.scale.order == "torchao":
        stored = e4m3(((amax / largest) / over).clamp(2.0**-6, E4M3_LARGEST))
        return stored * over, (1 / over) / stored
    stored = e4m3((amax / (largest * over)).clamp(2.0**-9, E4M3_LARGEST))
    return torch.where(amax == 0, 1.0, stored) * over, None


def e4m3(x: Tensor) -> Tensor:
    """Numbers >= 0 rounded to e4m3, in their own dtype. Larger ones than 448 become 448."""
    return x.clamp(max=E4M3_LARGEST).to(torch.float8_e4m3fn).to(x.dtype)
