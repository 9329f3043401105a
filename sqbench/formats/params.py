"""Scale and zero-point of every block, from its range, and the range that they cover. Pure functions.

A block is what shares one scale: the last axis of `codec.to_blocks`. Ranges and parameters keep that axis with size 1, so they
broadcast.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.formats.format import Format
from sqbench.formats.grid import grid
from sqbench.formats.scaling import power_of_two, two_levels

Limits = tuple[Tensor, Tensor]  # clipping ranges (lo, hi) over blocks


class QParams(NamedTuple):
    """Scale (float, not 0) and zero-point (an integer or a minimum, in the scale's dtype), broadcastable against the blocks.

    A scale is negative only under the convention `signed`. Where a tool finds codes by another number than the scale, `by` is it:
    values are multiplied by it if the format `multiplies`, else divided by it.
    """

    scale: Tensor
    zero_point: Tensor
    by: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "QParams":
        """The same parameters after a function of tensors."""
        return QParams(fn(self.scale), fn(self.zero_point), None if self.by is None else fn(self.by))

    @staticmethod
    def joined(parts: Sequence["QParams"], join: Callable[[list[Tensor]], Tensor]) -> "QParams":
        """The parameters of several blocks as one, by a function that joins tensors."""
        by = [one.by for one in parts if one.by is not None]
        return QParams(join([one.scale for one in parts]), join([one.zero_point for one in parts]), join(by) if by else None)


def block_range(blocks: Tensor, fmt: Format) -> Limits:
    """Smallest and largest value of every block, widened to contain 0 so that the zero-point is itself a code.

    They are not widened for a format that takes blocks' `own` ranges. The result is at least float32. A scale computed in bfloat16
    would cost more accuracy than 8-bit codes do.
    """
    wide = torch.promote_types(blocks.dtype, torch.float32)
    lo, hi = blocks.amin(-1, keepdim=True).to(wide), blocks.amax(-1, keepdim=True).to(wide)
    return (lo, hi) if fmt.range == "own" else (lo.clamp_(max=0), hi.clamp_(min=0))


def qparams(lo: Tensor, hi: Tensor, fmt: Format) -> QParams:
    """Scale and zero-point for clipping ranges [lo, hi].

    Symmetric: scale = max(|lo|, |hi|) / m for the element's largest number m, zero-point 0. With the convention `signed`, scale =
    lo / -2^(b-1) if |lo| >= |hi|, else hi / -2^(b-1). Asymmetric: scale = (hi - lo) / (2^b - 1) and zero_point = code_min -
    round(lo / scale) (Jacob et al., 2018, eq. 1 and section 3). A minimum is lo in the dtype of scales. A range of width 0 gives
    scale 1.
    """
    span = _span(lo, hi, fmt)
    if fmt.scale.dtype == "e8m0":
        return QParams(scale := power_of_two(span, fmt), torch.zeros_like(scale))
    if fmt.two_levels:
        scale, by = two_levels(span, fmt)
        return QParams(scale, torch.zeros_like(scale), by)
    exact = span / torch.full_like(span, fmt.levels)  # a GPU divides by a tensor as a CPU does, but multiplies by 1 / number
    scale = exact if fmt.scale.dtype == "float32" else exact.to(getattr(torch, fmt.scale.dtype)).to(lo.dtype)
    # For dead channels and ranges so narrow that the scale underflows. Any scale is exact for 0, and 1 never gives inf or nan.
    usable = scale.abs() > torch.finfo(scale.dtype).tiny
    scale, by = torch.where(usable, scale, torch.ones_like(scale)), None
    if fmt.scale.times.startswith("unrounded"):
        by = torch.where(usable, exact, scale)
    elif fmt.scale.times == "reciprocal":
        by = scale
    if by is not None and fmt.multiplies:
        by = 1 / by
    if fmt.has_minimum:
        return QParams(scale, lo.to(getattr(torch, fmt.scale.dtype)).to(lo.dtype), by)
    zero_point = torch.zeros_like(scale)
    if not fmt.symmetric:
        zero_point = fmt.smallest - torch.round(lo / (scale if by is None or fmt.multiplies else by))
    if fmt.range == "own":
        zero_point = zero_point.clamp(fmt.smallest, fmt.largest)
    return QParams(scale, zero_point, by)


def _span(lo: Tensor, hi: Tensor, fmt: Format) -> Tensor:
    """The part of a clipping range that `fmt.levels` steps of the scale cover."""
    if not fmt.symmetric:
        return hi - lo
    if fmt.convention == "signed":
        return torch.where(lo.abs() >= hi.abs(), -lo, -hi)
    if fmt.convention == "no_clipping":  # -lo / 2^(b-1) or hi / (2^(b-1) - 1), both times 2^(b-1), which is exact
        return torch.maximum(-lo, hi / torch.full_like(hi, fmt.largest) * fmt.levels)
    return torch.maximum(lo.abs(), hi.abs())


def bounds(params: QParams, fmt: Format, beyond: float = 0) -> Limits:
    """The smallest and the largest number that the codes of each block stand for, and `beyond` last steps further out."""
    ends = grid(fmt)
    below, above = beyond * float(ends[1] - ends[0]), beyond * float(ends[-1] - ends[-2])
    first = moved((fmt.smallest - origin(params, fmt) - below) * params.scale, params, fmt)
    last = moved((fmt.largest - origin(params, fmt) + above) * params.scale, params, fmt)
    return torch.minimum(first, last), torch.maximum(first, last)  # a negative scale exchanges them


def origin(params: QParams, fmt: Format) -> Tensor | float:
    """The number whose code stands for 0, or for the minimum."""
    return fmt.smallest if fmt.has_minimum else params.zero_point


def moved(values: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Values above the minimum as they are, in place."""
    return values.add_(params.zero_point) if fmt.has_minimum else values
