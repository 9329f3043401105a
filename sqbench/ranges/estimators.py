"""Range estimation: from the statistics of a tensor to its clipping range (lo, hi), which always contains 0.

Each estimator is one pure function `(InputStatistics, Format) -> (lo, hi)`, both 0-dim float tensors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sqbench.formats.codec import fake_quantize, of_tensor, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, block_range, bounds, qparams
from sqbench.ranges.density import Histogram, expected_error
from sqbench.ranges.divergence import least_divergence
from sqbench.ranges.search import search
from sqbench.statistics.inputs import InputStatistics

Estimator = Callable[[InputStatistics, Format], Limits]
AT_ONCE = 1 << 18  # weights rounded at once, so few that they stay in the processor's cache
LOOK = 5  # ratios between two checks whether smaller ones can still win


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


def percentile(stats: InputStatistics, fmt: Format, percent: float = 99.999) -> Limits:
    """The percentile of |x| if symmetric, else its counterparts at both ends. Interpolated within a bin, never beyond min-max."""
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
    """The min-max range times the ratio, of a grid of `steps` ratios, with the least expected |error|^norm."""
    lo, hi = minmax(stats, fmt)
    seen = Histogram.seen(stats)
    if seen is None:
        return lo, hi
    ratios = torch.arange(steps, 0, -1) / steps
    error = expected_error(seen, ratios * lo.cpu(), ratios * hi.cpu(), fmt, norm)
    best = ratios[error.argmin()]
    return lo * best, hi * best


def histogram(stats: InputStatistics, fmt: Format) -> Limits:
    """The range with the least expected squared error for the 2^b levels of the format. Each end is searched separately."""
    low, high = minmax(stats, fmt)
    seen = Histogram.seen(stats)
    if seen is None:
        return low, high
    lo, hi = search(seen, float(low), float(high), fmt)
    return lo.to(low.device), hi.to(low.device)


def entropy(stats: InputStatistics, fmt: Format) -> Limits:
    """The range whose threshold on |x| loses the least information."""
    low, high = minmax(stats, fmt)
    seen = Histogram.seen(stats)
    if seen is None:
        return low, high
    lo, hi = least_divergence(seen, float(low), float(high), fmt)
    return lo.to(low.device), hi.to(low.device)


def shrink_blocks(weight: Tensor, fmt: Format, norm: float = 2.0, steps: int = 100) -> Limits:
    """For each block of a weight, the min-max range times the ratio (of 1/steps, ..., 1) with the lowest sum |error|^norm.

    Ratios are tried from 1 down. A smaller ratio clips more. The search stops when, in every block, the clipped values alone cost
    as much as the block's best ratio does. At most about AT_ONCE values are rounded at a time.
    """
    fmt = of_tensor(fmt, weight)
    blocks = to_blocks(weight, fmt)
    best = [_best_ratio(part, fmt, norm, steps) for part in blocks.split(max(1, AT_ONCE * len(blocks) // blocks.numel()))]
    ratio = torch.cat(best)
    lo, hi = block_range(blocks, fmt)
    return lo * ratio, hi * ratio


def _best_ratio(blocks: Tensor, fmt: Format, norm: float, steps: int) -> Tensor:
    """The best ratio of each block."""
    lo, hi = block_range(blocks, fmt)
    best_ratio = torch.ones_like(lo)
    best_error = torch.full_like(lo, torch.inf)
    for step in range(steps, 0, -1):
        ratio = step / steps
        if (steps - step) % LOOK == LOOK - 1:
            # Smaller ratios clip all that this one clips. Rounded zero-points can move its ends by less than a step.
            clipped = blocks - torch.clamp(blocks, *bounds(qparams(lo * ratio, hi * ratio, fmt), fmt, beyond=1))
            if (clipped.abs_().pow_(norm).sum(-1, keepdim=True) >= best_error).all():
                break
        error = (fake_quantize(blocks, qparams(lo * ratio, hi * ratio, fmt), fmt) - blocks).abs_().pow_(norm).sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, ratio, best_ratio)
    return best_ratio
