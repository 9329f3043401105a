"""Range estimation: from the statistics of a tensor to its clipping range (lo, hi), always around 0.

Each estimator is one pure function `(InputStatistics, Format) -> (lo, hi)`, both 0-dim float tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.quant.affine import QParams, block_range, fake_quantize, qparams, to_blocks
from sqbench.quant.formats import Format
from sqbench.quant.statistics import InputStatistics

Limits = tuple[Tensor, Tensor]


def minmax(stats: InputStatistics, fmt: Format) -> Limits:
    """Global minimum and maximum over the calibration set."""
    return stats.low.min().clamp(max=0), stats.high.max().clamp(min=0)


def ema_minmax(stats: InputStatistics, fmt: Format) -> Limits:
    """Moving average of each batch's minimum and maximum."""
    return stats.low.new_tensor(stats.ema_low).clamp(max=0), stats.low.new_tensor(stats.ema_high).clamp(min=0)


def mean_minmax(stats: InputStatistics, fmt: Format) -> Limits:
    """Mean over batches of each batch's minimum and maximum."""
    count = max(stats.batches, 1)
    return stats.low.new_tensor(stats.batch_low / count).clamp(max=0), stats.low.new_tensor(stats.batch_high / count).clamp(min=0)


class Histogram(NamedTuple):
    """Non-empty bins: left and right edges and counts, each [N] float64. Inside a bin the density is taken as uniform.

    `edges` are those of all bins, empty ones too, between 0 and the ends of the data.
    """

    left: Tensor
    right: Tensor
    counts: Tensor
    edges: Tensor

    @classmethod
    def of(cls, counts: Tensor, low: float, high: float) -> "Histogram":
        """From counts over equal bins between low and high."""
        edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64, device=counts.device)
        used = counts > 0
        left, right = edges[:-1][used], edges[1:][used]
        spanned = edges[(edges >= left[0].clamp(max=0)) & (edges <= right[-1].clamp(min=0))]
        return cls(left, right, counts[used].double(), torch.cat([spanned, spanned.new_zeros(1)]).unique())

    def coarse(self, most: int) -> "Histogram":
        """At most about `most` bins: runs of neighbours merged."""
        step = -(-len(self.counts) // most)
        if step == 1:
            return self
        starts = torch.arange(0, len(self.counts), step)
        ends = torch.clamp(starts + step, max=len(self.counts)) - 1
        summed = self.counts.cumsum(0)[ends]
        return Histogram(self.left[starts], self.right[ends], summed.diff(prepend=summed.new_zeros(1)), self.edges)


def expected_error(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format, norm: float = 2.0) -> Tensor:
    """Mean |x - fake_quantize(x)|^norm under a histogram, for K candidate ranges at once: [K] float64, exact for the density.

    With r the distance to the nearest level inside the range, |r|^p has the antiderivative sign(r) |r|^(p+1) / (p+1), and each
    whole step between levels adds 2 (scale/2)^(p+1) / (p+1); outside the range the nearest level is the last one.
    """
    params = qparams(lo.double().unsqueeze(1), hi.double().unsqueeze(1), fmt)
    floor = (fmt.code_min - params.zero_point) * params.scale
    whole = 2 * (params.scale / 2) ** (norm + 1)

    def integral(x: Tensor) -> Tensor:
        level = ((x - floor) / params.scale).round_().clamp_(0, fmt.code_max - fmt.code_min)
        rest = x - floor - level * params.scale
        return (level * whole + rest.sign() * rest.abs() ** (norm + 1)) / (norm + 1)

    weight = histogram.counts / (histogram.right - histogram.left) / histogram.counts.sum()
    return ((integral(histogram.right) - integral(histogram.left)) * weight).sum(1)


def _histogram(stats: InputStatistics) -> Histogram | None:
    """The signed histogram of the statistics; None if only zeros were seen."""
    return Histogram.of(stats.bins.cpu(), -stats.reach, stats.reach) if stats.reach else None


def percentile(stats: InputStatistics, fmt: Format, percent: float = 99.999) -> Limits:
    """Symmetric: the percentile of |x|. Asymmetric: its counterparts at both ends. Interpolated within a bin, inside min-max."""
    lo, hi = minmax(stats, fmt)
    if not stats.reach:
        return lo, hi
    counts = stats.bins.double()
    if fmt.symmetric:
        half = len(counts) // 2
        counts = counts[half:] + counts[:half].flip(0)
    width = stats.reach / (len(stats.bins) // 2)

    def quantile(counts: Tensor, share: float, start: float) -> Tensor:
        cumulative = counts.cumsum(0)
        target = share * cumulative[-1]
        index = int(torch.searchsorted(cumulative, target).clamp(max=len(counts) - 1))
        inside = (target - (cumulative[index] - counts[index])) / counts[index].clamp(min=1)
        return (start + (index + inside) * width).float()

    share = percent / 100
    if fmt.symmetric:
        bound = torch.minimum(quantile(counts, share, 0.0), torch.maximum(-lo, hi))
        return -bound, bound
    return torch.maximum(quantile(counts, 1 - share, -stats.reach), lo).clamp(max=0), torch.minimum(
        quantile(counts, share, -stats.reach), hi
    ).clamp(min=0)


def mse(stats: InputStatistics, fmt: Format, norm: float = 2.0, steps: int = 100) -> Limits:
    """Shrink the min-max range over a grid of `steps` ratios and keep the one with the least expected |error|^norm."""
    lo, hi = minmax(stats, fmt)
    histogram = _histogram(stats)
    if histogram is None:
        return lo, hi
    ratios = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    error = expected_error(histogram, ratios * lo.cpu(), ratios * hi.cpu(), fmt, norm)
    best = ratios[error.argmin()].float()
    return lo * best, hi * best


def histogram(stats: InputStatistics, fmt: Format) -> Limits:
    """The range between bin edges with the least expected squared error, for the 2^b levels of the format."""
    found = _histogram(stats)
    if found is None:
        return minmax(stats, fmt)
    lo, hi = search_edges(found, fmt)
    low, high = minmax(stats, fmt)  # an edge may lie a bin beyond the data
    return torch.maximum(lo.float().to(low.device), low), torch.minimum(hi.float().to(high.device), high)


def search_edges(histogram: Histogram, fmt: Format, candidates: int = 32) -> Limits:
    """Best (lo, hi) over pairs of bin edges around 0: exhaustive up to `candidates` edges a side, else coarse to fine.

    The idea is torch.ao's HistogramObserver; its public version searches greedily and for 256 levels at any bit-width.
    """
    edges = histogram.edges
    below, above = edges[edges <= 0], edges[edges >= 0]
    if fmt.symmetric:
        bounds = edges.abs().unique()
        below, above = -bounds.flip(0), bounds

    lows, highs = _spread(below, candidates), _spread(above, candidates)
    while True:
        fine = max(len(below), len(above)) <= candidates
        seen = histogram if fine else histogram.coarse(512)
        if fmt.symmetric:
            lo, hi = -highs, highs
        else:
            lo, hi = (axis.flatten() for axis in torch.meshgrid(lows, highs, indexing="ij"))
        error = torch.cat([expected_error(seen, a, b, fmt) for a, b in zip(lo.split(256), hi.split(256), strict=True)])
        best = int(error.argmin())
        if fine:
            return lo[best], hi[best]
        below, above = _around(below, lows, lo[best]), _around(above, highs, hi[best])
        lows, highs = _spread(below, candidates), _spread(above, candidates)


def _spread(values: Tensor, most: int) -> Tensor:
    """At most `most` of the sorted values, evenly spaced by index, both ends included."""
    return values if len(values) <= most else values[torch.linspace(0, len(values) - 1, most).round().long()]


def _around(values: Tensor, tried: Tensor, best: Tensor) -> Tensor:
    """The values between the tried neighbours of the best one."""
    at = int((tried == best).nonzero()[0])
    left, right = tried[max(at - 1, 0)], tried[min(at + 1, len(tried) - 1)]
    return values[(values >= left) & (values <= right)]


def entropy(stats: InputStatistics, fmt: Format) -> Limits:
    """The threshold on |x| whose quantized distribution has the least KL divergence from the clipped one.

    TensorRT's calibration (Migacz, 2017): 2^(b-1) levels, the mass beyond a threshold counted at it. Thresholds end at non-empty
    bins, where both distributions have support. All thresholds are evaluated at once from prefix sums.
    """
    lo, hi = minmax(stats, fmt)
    if not stats.reach:
        return lo, hi
    half = len(stats.bins) // 2
    counts = (stats.bins[half:] + stats.bins[:half].flip(0)).double().cpu()
    levels = 2 ** (fmt.bits - 1)
    ends = counts.nonzero().flatten() + 1
    ends = ends[ends >= min(levels, int(ends[-1]))]
    mass, used = (torch.cat([torch.zeros(1, dtype=torch.float64), part.cumsum(0)]) for part in (counts, (counts > 0).double()))
    entropies = torch.cat([torch.zeros(1, dtype=torch.float64), torch.special.xlogy(counts, counts).cumsum(0)])
    beyond = mass[-1] - mass[ends]
    last = counts[ends - 1]
    own = entropies[ends] - torch.special.xlogy(last, last) + torch.special.xlogy(last + beyond, last + beyond)  # sum p log p
    bounds = (torch.arange(levels + 1) * ends.unsqueeze(1)) // levels  # [thresholds, levels + 1]
    group_mass, group_used = mass[bounds].diff(dim=1), used[bounds].diff(dim=1)
    reference = group_mass.clone()
    reference[:, -1] += beyond
    total = mass[-1]
    cross = torch.special.xlogy(reference, group_mass / group_used.clamp(min=1)).sum(1)  # sum p log q, q spread over used bins
    divergence = (own - cross) / total + torch.log(mass[ends] / total)  # both normalised
    bound = (ends[divergence.argmin()] * (stats.reach / half)).float()
    bound = torch.minimum(bound, torch.maximum(-lo, hi).cpu()).to(lo.device)
    return torch.maximum(-bound, lo), torch.minimum(bound, hi)


def shrink_blocks(weight: Tensor, fmt: Format, norm: float = 2.0, steps: int = 20, least: float = 0.5) -> Limits:
    """Per block of a weight, the shrunk min-max range (ratios 1 down to `least`) with the lowest sum |error|^norm."""
    blocks = to_blocks(weight, fmt)
    lo, hi = block_range(blocks)
    best_error = torch.full_like(lo, torch.inf)
    best_ratio = torch.ones_like(lo)
    for ratio in torch.linspace(1, least, steps).tolist():
        params: QParams = qparams(lo * ratio, hi * ratio, fmt)
        error = (fake_quantize(blocks, params, fmt) - blocks).abs().pow(norm).sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return lo * best_ratio, hi * best_ratio
