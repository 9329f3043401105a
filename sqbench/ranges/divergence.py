"""The threshold whose quantized distribution is nearest to the clipped one: TensorRT's entropy calibration (Migacz, 2017)."""

import math

import torch
from torch import Tensor
from torch.special import xlogy

from sqbench.formats.format import Format
from sqbench.formats.grid import grid, midpoints
from sqbench.formats.params import qparams
from sqbench.ranges.density import Histogram, prefix_sums, squared_errors

ONE_BIT = 4.0  # the squared error grows by this factor with one bit less, which doubles the step


def least_divergence(histogram: Histogram, low: float, high: float, fmt: Format) -> tuple[Tensor, Tensor]:
    """(max(-T, low), min(T, high)) for the best threshold T, 0-dim float32.

    P is the histogram between the thresholds. Its last bins that are not empty also count the values beyond the thresholds. Q is
    the same histogram without the values beyond. A cell of the format holds the values of one code, and the bins of a cell share
    their counts in Q. Bins that are empty in P stay empty. The best T has the least D(P || Q) = sum P log(P / Q) - sum P + sum Q.
    A bin edge is tried if it leaves at least as many bins as the format has levels.

    TensorRT's recipe is for |x| and 2^(b-1) levels. Here both sides and all codes of the format count, as in MXNet's version.
    Other differences, and the reasons:

    - Exact zeros do not count, because 0 is a code at any threshold. The bins at 0 get at most the counts of their neighbours.
      NVIDIA's pytorch-quantization replaces the first bin. Otherwise the zeros that a ReLU writes stand out of their cell, and the
      smallest threshold wins.
    - Q is not scaled up to the sum of P. Otherwise all of Q would share the mass beyond, and a single bin would match perfectly.
    - A threshold is tried only if it costs at most ONE_BIT times the least expected squared error. The divergence counts how many
      values are clipped, not how far. It would clip one value in a thousand at 30 sigma, which is half of the energy.

    Args:
        histogram: runs from -reach to reach, so 0 is its middle edge.
        low, high: the smallest and the largest value of the data, widened to contain 0. Not both 0.
    """
    histogram = without_zeros(histogram)
    counts = histogram.counts
    half, total, filled = len(counts) // 2, counts.sum(), counts.nonzero().flatten()
    if not len(filled):  # all values are so small that they are in the bins at 0
        return torch.tensor(low), torch.tensor(high)
    reached = torch.where(filled < half, half - filled, filled - half + 1)  # how many bins on one side of 0 reach this one
    least, most = int(reached.min()), int(reached.max())
    ends = torch.arange(max(least, min(_bins_needed(fmt, low, high), most)), most + 1, dtype=torch.float64)
    lo, hi = (ends * -histogram.width).clamp(min=low), (ends * histogram.width).clamp(max=high)

    error = squared_errors(histogram, lo.float(), hi.float(), fmt)
    kept = error <= ONE_BIT * error.min()
    lo, hi = lo[kept], hi[kept]

    bounds = _cells(histogram, lo, hi, fmt)
    mass, used, entropy = (prefix_sums(part) for part in (counts, (counts > 0).double(), xlogy(counts, counts)))
    below, above = mass[bounds[:, 0]], total - mass[bounds[:, -1]]
    first = filled[torch.searchsorted(filled, bounds[:, 0].contiguous())]
    last = filled[torch.searchsorted(filled, bounds[:, -1].contiguous()) - 1]
    own = entropy[bounds[:, -1]] - entropy[bounds[:, 0]] + _added(counts[first], below)
    own += _added(counts[last] + torch.where(first == last, below, 0), above)  # sum P log P
    quantized = mass[bounds].diff(dim=1)
    clipped = quantized.clone()
    for bin_, beyond in ((first, below), (last, above)):
        cell = (bounds[:, 1:-1] <= bin_.unsqueeze(1)).sum(1, keepdim=True)
        clipped.scatter_add_(1, cell, beyond.unsqueeze(1))
    cross = xlogy(clipped, quantized / used[bounds].diff(dim=1).clamp(min=1)).sum(1)  # sum P log Q
    best = (own - cross - below - above).argmin()
    return lo[best].float(), hi[best].float()


def without_zeros(histogram: Histogram) -> Histogram:
    """The histogram with the counts of the two bins at 0 limited to those of their neighbours."""
    counts, half = histogram.counts.clone(), len(histogram.counts) // 2
    counts[half] = torch.minimum(counts[half], counts[half + 1])
    counts[half - 1] = torch.minimum(counts[half - 1], counts[half - 2])
    return histogram._replace(counts=counts)


def _bins_needed(fmt: Format, low: float, high: float) -> int:
    """How many bins a threshold needs to have one for every level. If the range has both signs, each side holds half the levels."""
    levels = fmt.levels if fmt.is_integer else (len(grid(fmt)) - 1) / 2
    return math.ceil(levels if fmt.symmetric or low == 0 or high == 0 else levels / 2)


def _cells(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format) -> Tensor:
    """For K ranges, the bins at which the format's cells begin, and the end of the last cell: [K, cells + 1] int64.

    A bin belongs to the cell that holds most of it. The bins of all cells are those between lo and hi.
    """
    params = qparams(lo, hi, fmt)
    thresholds = (midpoints(fmt) - params.zero_point.unsqueeze(1)) * params.scale.unsqueeze(1)
    start, stop, between = ((x - histogram.low) / histogram.width for x in (lo.unsqueeze(1), hi.unsqueeze(1), thresholds))
    start, stop = start.floor(), stop.ceil()
    bounds = torch.cat([start, torch.clamp(between.round(), start, stop), stop], 1)
    return bounds.long().clamp_(0, len(histogram.counts))


def _added(counts: Tensor, beyond: Tensor) -> Tensor:
    """The growth of c log c when c grows by `beyond`."""
    return xlogy(counts + beyond, counts + beyond) - xlogy(counts, counts)
