"""A histogram as a probability density, and the cost of a clipping range under it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.formats.format import Format
from sqbench.formats.grid import grid, midpoints
from sqbench.formats.params import qparams
from sqbench.statistics.inputs import InputStatistics

AT_ONCE = 1 << 16  # numbers computed at once, so few that they stay in the processor's cache


class Histogram(NamedTuple):
    """Counts [N] float64 over N equal bins that start at `low`. The density is assumed uniform inside a bin."""

    counts: Tensor
    low: float
    width: float

    @classmethod
    def of(cls, counts: Tensor, low: float, high: float) -> "Histogram":
        """The histogram of counts over equal bins between low and high."""
        return cls(counts.double(), low, (high - low) / len(counts))

    @classmethod
    def seen(cls, stats: InputStatistics) -> "Histogram | None":
        """The histogram of all values in the statistics, on the CPU. None if they were only zeros."""
        return cls.of(stats.bins.cpu(), -stats.reach, stats.reach) if stats.reach else None

    @property
    def edges(self) -> Tensor:
        """The bin edges: [N + 1] float64."""
        return self.low + self.width * torch.arange(len(self.counts) + 1, dtype=torch.float64)


def prefix_sums(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ... N values: [N + 1]."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def expected_error(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format, norm: float = 2.0) -> Tensor:
    """Mean |x - fake_quantize(x)|^norm under a histogram for K candidate ranges: [K] float64, exact for the density.

    Inside the range, let r be the distance to the nearest level. |r|^p has the antiderivative sign(r) |r|^(p+1) / (p+1). Each whole
    step d between levels adds 2 (d/2)^(p+1) / (p+1). Outside the range the nearest level is the last one. Scale and zero-point are
    computed in the dtype of the ranges. In float32 they equal those of the quantizer.
    """
    edges, used = histogram.edges, histogram.counts > 0
    left, right = edges[:-1][used], edges[1:][used]
    weight = histogram.counts[used] / histogram.width / histogram.counts.sum()
    levels, between = grid(fmt), midpoints(fmt)
    whole = prefix_sums(2 * (levels.diff() / 2) ** (norm + 1))

    def of(lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = _parameters(lo, hi, fmt)

        def integral(x: Tensor) -> Tensor:
            steps = x / scale + zero_point
            level = torch.bucketize(steps, between)
            rest = steps - levels[level]
            return (whole[level] + rest.sign() * rest.abs() ** (norm + 1)) / (norm + 1)

        return ((integral(right) - integral(left)) * weight).sum(1) * scale.squeeze(1) ** (norm + 1)

    return _in_parts(of, lo, hi, len(weight))


def squared_errors(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format) -> Tensor:
    """`expected_error` of norm 2 for K ranges: [K]. It takes K 2^b steps instead of K N, which is cheap enough for a search.

    The levels are l_1 < ... < l_n at distances d_j, the thresholds c_j lie half way between them, and G(c) = E max(c - x, 0).
    Summation by parts gives E (x - Q(x))^2 = E (x - l_n)^2 - 2 sum_j d_j G(c_j). G is quadratic inside a bin.
    """
    counts, edges = histogram.counts / histogram.counts.sum(), histogram.edges
    share = prefix_sums(counts)
    shortfall = prefix_sums(share[:-1] + counts / 2)  # G at the edges, in bins. Inside a bin G grows by t (share + t count / 2)
    half = torch.cat([counts, counts.new_zeros(1)]) / 2
    mean = (counts * (edges[:-1] + edges[1:]) / 2).sum()
    square = (counts * (edges[1:] ** 3 - edges[:-1] ** 3)).sum() / (3 * histogram.width)
    between, gaps = midpoints(fmt), grid(fmt).diff()

    def of(lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = _parameters(lo, hi, fmt)
        start = (zero_point * scale + histogram.low) / histogram.width
        place = torch.addcmul(-start, scale / histogram.width, between).clamp_(min=0)
        bin_ = place.long().clamp_(max=len(counts))
        rest = place.sub_(bin_)
        shortfalls = half[bin_].mul_(rest).add_(share[bin_]).mul_(rest).add_(shortfall[bin_])
        below = shortfalls.mul_(gaps).sum(1, keepdim=True) * histogram.width
        last = (fmt.largest - zero_point) * scale
        return (square - 2 * last * mean + last.square() - 2 * scale * below).squeeze(1)

    return _in_parts(of, lo, hi, len(between))


def _parameters(lo: Tensor, hi: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of K ranges: [K, 1] float64 each."""
    params = qparams(lo, hi, fmt)
    return params.scale.double().unsqueeze(1), params.zero_point.double().unsqueeze(1)


def _in_parts(of: Callable[[Tensor, Tensor], Tensor], lo: Tensor, hi: Tensor, each: int) -> Tensor:
    """Evaluate a function of candidate ranges in bounded memory. It works on `each` numbers per candidate."""
    parts = max(1, AT_ONCE // each)
    return torch.cat([of(*part) for part in zip(lo.split(parts), hi.split(parts), strict=True)])
