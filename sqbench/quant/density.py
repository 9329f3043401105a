"""A histogram as a probability density, and what a clipping range costs under it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.quant.affine import qparams
from sqbench.quant.formats import Format
from sqbench.quant.statistics import InputStatistics

AT_ONCE = 1 << 16  # numbers worked on together: they stay in the processor's cache


class Histogram(NamedTuple):
    """Counts [N] float64 over N equal bins that start at `low`. Inside a bin the density is taken as uniform."""

    counts: Tensor
    low: float
    width: float

    @classmethod
    def of(cls, counts: Tensor, low: float, high: float) -> "Histogram":
        """From counts over equal bins between low and high."""
        return cls(counts.double(), low, (high - low) / len(counts))

    @classmethod
    def seen(cls, stats: InputStatistics) -> "Histogram | None":
        """Of all values that statistics have seen, on the CPU; None if they were zeros only."""
        return cls.of(stats.bins.cpu(), -stats.reach, stats.reach) if stats.reach else None

    @property
    def edges(self) -> Tensor:
        """[N + 1] float64."""
        return self.low + self.width * torch.arange(len(self.counts) + 1, dtype=torch.float64)


def prefix_sums(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ... N values: [N + 1]."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def expected_error(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format, norm: float = 2.0) -> Tensor:
    """Mean |x - fake_quantize(x)|^norm under a histogram, for K candidate ranges at once: [K] float64, exact for the density.

    With r the distance to the nearest level inside the range, |r|^p has the antiderivative sign(r) |r|^(p+1) / (p+1), and each
    whole step between levels adds 2 (scale/2)^(p+1) / (p+1); outside the range the nearest level is the last one. Scale and
    zero-point are computed in the dtype of the ranges: in float32 they are those that the quantizer will have.
    """
    edges, used = histogram.edges, histogram.counts > 0
    left, right = edges[:-1][used], edges[1:][used]
    weight = histogram.counts[used] / histogram.width / histogram.counts.sum()

    def of(lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = (part.double().unsqueeze(1) for part in qparams(lo, hi, fmt))
        floor = (fmt.code_min - zero_point) * scale
        whole = 2 * (scale / 2) ** (norm + 1)

        def integral(x: Tensor) -> Tensor:
            level = ((x - floor) / scale).round_().clamp_(0, fmt.code_max - fmt.code_min)
            rest = x - floor - level * scale
            return (level * whole + rest.sign() * rest.abs() ** (norm + 1)) / (norm + 1)

        return ((integral(right) - integral(left)) * weight).sum(1)

    return _in_parts(of, lo, hi, len(weight))


def squared_errors(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format) -> Tensor:
    """`expected_error` of norm 2 for K ranges [K], in K 2^b steps rather than K N: what a search can afford.

    With levels l_1 < ... < l_n at distance s, thresholds c_j half way between them, and G(c) = E max(c - x, 0), summation by parts
    gives E (x - Q(x))^2 = E (x - l_n)^2 - 2 s sum_j G(c_j). G is quadratic inside a bin.
    """
    counts, edges = histogram.counts / histogram.counts.sum(), histogram.edges
    share = prefix_sums(counts)
    shortfall = prefix_sums(share[:-1] + counts / 2)  # G at the edges, in bins; inside a bin it grows by t (share + t count / 2)
    half = torch.cat([counts, counts.new_zeros(1)]) / 2
    mean = (counts * (edges[:-1] + edges[1:]) / 2).sum()
    square = (counts * (edges[1:] ** 3 - edges[:-1] ** 3)).sum() / (3 * histogram.width)
    between = torch.arange(fmt.code_min, fmt.code_max, dtype=torch.float64) + 0.5

    def of(lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = (part.double().unsqueeze(1) for part in qparams(lo, hi, fmt))
        start = (zero_point * scale + histogram.low) / histogram.width
        place = torch.addcmul(-start, scale / histogram.width, between).clamp_(min=0)
        bin_ = place.long().clamp_(max=len(counts))
        rest = place.sub_(bin_)
        below = half[bin_].mul_(rest).add_(share[bin_]).mul_(rest).add_(shortfall[bin_]).sum(1, keepdim=True) * histogram.width
        last = (fmt.code_max - zero_point) * scale
        return (square - 2 * last * mean + last.square() - 2 * scale * below).squeeze(1)

    return _in_parts(of, lo, hi, len(between))


def _in_parts(of: Callable[[Tensor, Tensor], Tensor], lo: Tensor, hi: Tensor, each: int) -> Tensor:
    """A function of candidate ranges that works on `each` numbers for every one of them, in bounded memory."""
    parts = max(1, AT_ONCE // each)
    return torch.cat([of(*part) for part in zip(lo.split(parts), hi.split(parts), strict=True)])
