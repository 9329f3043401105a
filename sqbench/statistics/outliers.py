"""Outlier diagnostics: how uneven an input is, and whether its outliers stay in the same channels."""

import torch
from torch import Tensor

from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.rows import count_top, top_size

NEEDS = frozenset({"histogram", "blocks"})  # collectors of a whole report; without them kurtosis and range_used are left out
CENTRAL = 0.999  # the share of values for which `range_used` gives the part of the range


def describe(stats: InputStatistics) -> dict[str, float]:
    """Outlier diagnostics of one input. Every value is finite.

    absmax: the largest |x|.
    channel_median, channel_p90, channel_p99: quantiles of the channels' absmax, over channels that were not always 0.
    ratio: the largest channel absmax divided by the median.
    kurtosis: E (x - m)^4 / (E (x - m)^2)^2 of all values. 3 for a normal distribution, 0 if all values are equal. The mean m and
        the second moment are exact (channel sums, Gram diagonal). The fourth moment is the histogram's, uniform within a bin.
    range_used: the part of [min, max] between the 0.05 % and the 99.95 % quantile of the histogram. 1 for an empty range.
    persistence: agreement (`agreement`) of the examples' sets of largest channels.
    persistence_tokens: agreement of the sample rows' sets.
    chance: the value of both if the largest channels were drawn at random each time.

    A single channel has neither `chance` nor a persistence. A persistence is also absent if there are no two sets to compare, and
    kurtosis and range_used if their collectors (`NEEDS`) did not run. After `InputStatistics.scaled`, kurtosis, range_used and the
    examples' sets come from the sample rows.
    """
    stats = stats.approximated()
    channels = len(stats.low)
    absmax = stats.absmax.double().cpu()
    live = absmax[absmax > 0] if absmax.any() else absmax.new_zeros(1)
    median, p90, p99 = torch.quantile(live, absmax.new_tensor([0.5, 0.9, 0.99])).tolist()
    numbers = {
        "absmax": float(live.max()),
        "channel_median": median,
        "channel_p90": p90,
        "channel_p99": p99,
        "ratio": float(live.max()) / median if median else 1.0,
        **({"kurtosis": _kurtosis(stats)} if stats.has("histogram", "blocks") else {}),
        **({"range_used": _range_used(stats)} if stats.has("histogram") else {}),
    }
    if channels == 1:
        return numbers
    size = top_size(channels)
    numbers["chance"] = size / (2 * channels - size)
    for name, (top, examples) in (
        ("persistence", (stats.top, stats.examples)),
        ("persistence_tokens", count_top(stats.rows.abs())),
    ):
        if examples > 1:
            numbers[name] = agreement(top, examples)
    return numbers


def agreement(top: Tensor, examples: int) -> float:
    """The Jaccard index at the mean intersection I of two examples' sets of k largest channels: I / (2 k - I).

    t_c counts how often channel c was among an example's k largest. I is exact: sum_c t_c (t_c - 1) / (n (n - 1)) over n examples.
    The index is convex in the intersection, so the mean of the pairs' own indices is at least this. Both are equal if all pairs
    agree in equally many channels. Sets drawn at random have I = k^2 / C, which gives k / (2 C - k).

    Args:
        top: [C] integer counts with sum k n.
        examples: n, at least 2.
    """
    counts = top.double()
    size = float(counts.sum()) / examples
    shared = float((counts * (counts - 1)).sum()) / (examples * (examples - 1))
    return shared / (2 * size - shared)


def _kurtosis(stats: InputStatistics) -> float:
    values = stats.tokens * len(stats.low)
    if not stats.reach or stats.low.min() == stats.high.max():
        return 0.0
    mean = float(stats.sum.sum()) / values
    squares = float(stats.blocks.diagonal(dim1=1, dim2=2).double().sum())
    edges = torch.linspace(-stats.reach, stats.reach, len(stats.bins) + 1, dtype=torch.float64) - mean
    width = 2 * stats.reach / len(stats.bins)
    counts = stats.bins.double().cpu()
    fourth = float((counts * edges.pow(5).diff()).sum() / (5 * width * counts.sum()))
    variance = max(squares / values - mean**2, width**2 / 12)  # a variance below that of one bin is only rounding
    return max(1.0, fourth / variance**2)  # no distribution is below 1, but sample rows can miss values that the moments include


def _range_used(stats: InputStatistics) -> float:
    low, high = float(stats.low.min()), float(stats.high.max())
    if not stats.reach or low == high:
        return 1.0
    counts = stats.bins.double().cpu()
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = torch.linspace(-stats.reach, stats.reach, len(below), dtype=torch.float64)
    ends = []
    for share in ((1 - CENTRAL) / 2, (1 + CENTRAL) / 2):
        wanted = share * float(below[-1])
        at = int(torch.searchsorted(below, wanted, right=False)) - 1  # the bin in which the count passes `wanted`
        inside = (wanted - below[at]) / counts[at]
        ends.append(float((edges[at] + inside * (edges[at + 1] - edges[at])).clamp(low, high)))
    return (ends[1] - ends[0]) / (high - low)
