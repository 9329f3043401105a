"""Streaming statistics of one tensor, taken batch by batch. Memory is O(channels + bins) for any number of tokens."""

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

BINS = 4096  # of the streaming histogram. Its reach is at most twice the largest |x|: at least 2048 bins cover [-absmax, absmax]
SMALLEST_REACH = -100  # exponent of the smallest reach, a power of two: bins per unit must fit float32
EMA_MOMENTUM = 0.9  # torch.ao's MovingAverageMinMaxObserver keeps 1 - 0.01 per step. 0.9 forgets within a 32-batch calibration.
GRAM_BLOCK = 128
ROWS = 128  # sample rows kept in total, for any length of calibration
TOP_SHARE = 0.01  # share of the channels that count as an example's largest


def gram_block(channels: int) -> int:
    """Width of the diagonal Gram blocks: the largest power of two up to 128 that divides the channels."""
    block = GRAM_BLOCK
    while channels % block:
        block //= 2
    return block


def top_size(channels: int) -> int:
    """How many of an example's channels count as its largest: one in a hundred, at least one."""
    return max(1, round(TOP_SHARE * channels))


def count_bins(x: Tensor, reach: float) -> Tensor:
    """Histogram of x over [-reach, reach] in BINS equal bins: [BINS] int64. All values of x must lie inside.

    The counts equal those of torch.histc, which takes twelve times as long. `reach` is a power of two, so the number of bins per
    unit is one too. Multiplying by it is exact. Only the shift rounds, as in torch.histc.
    """
    place = torch.add(x.new_tensor(BINS / 2), x, alpha=BINS / 2 / reach)
    counts = torch.bincount(place.short().flatten(), minlength=BINS + 1)
    counts[BINS - 1] += counts[BINS]  # values equal to reach
    return counts[:BINS]


@dataclass
class InputStatistics:
    """Streaming statistics of one activation with C channels (its last axis).

    Attributes:
        tokens, batches: how many rows of C values, and how many calls, have been seen.
        low, high: [C] smallest and largest value of every channel.
        sum, abs_sum: [C] float64 sums of x and of |x|.
        batch_low, batch_high: sums over batches of the batch's own minimum and maximum.
        ema_low, ema_high: moving averages of the batch's own minimum and maximum.
        bins: [BINS] int64 counts over [-reach, reach].
        reach: a power of two, so that doubling it merges neighbouring bins exactly.
        gram: [C / b, b, b] diagonal blocks of X^T X. They give the exact output error of any weight error inside a block.
        rows: [R, C] sample rows, at most ROWS, evenly spaced within their batch.
        top: [C] int64, in how many examples a channel's absmax was among the `top_size(C)` largest.
        examples: how many examples `top` has counted. Each has at least `top_size(C)` channels other than 0.
    """

    tokens: int
    batches: int
    low: Tensor
    high: Tensor
    sum: Tensor
    abs_sum: Tensor
    batch_low: float
    batch_high: float
    ema_low: float
    ema_high: float
    bins: Tensor
    reach: float
    gram: Tensor
    rows: Tensor
    top: Tensor
    examples: int

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "InputStatistics":
        """Statistics before the first batch."""
        block = gram_block(channels)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            tokens=0,
            batches=0,
            low=zeros(channels),
            high=zeros(channels),
            sum=zeros(channels, dtype=torch.float64),
            abs_sum=zeros(channels, dtype=torch.float64),
            batch_low=0.0,
            batch_high=0.0,
            ema_low=0.0,
            ema_high=0.0,
            bins=zeros(BINS, dtype=torch.int64),
            reach=0.0,
            gram=zeros(channels // block, block, block),
            rows=zeros(0, channels),
            top=zeros(channels, dtype=torch.int64),
            examples=0,
        )

    @torch.no_grad()
    def update(self, x: Tensor, keep_rows: int = 4) -> None:
        """Add one batch [examples, ..., C].

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        by_example = x.reshape(len(x), -1, x.shape[-1]).float()
        lows, highs = by_example.amin(1), by_example.amax(1)
        low, high = lows.amin(0), highs.amax(0)
        x = by_example.flatten(0, 1)
        batch_low, batch_high = float(low.min()), float(high.max())
        largest = max(-batch_low, batch_high)
        if not largest < float("inf"):  # also false for NaN, which amin and amax pass on
            raise FloatingPointError("NaN or infinity")
        first = self.batches == 0
        self.low = low if first else torch.minimum(self.low, low)
        self.high = high if first else torch.maximum(self.high, high)
        self.sum += x.sum(0)
        self.abs_sum += x.abs().sum(0)
        self.batch_low += batch_low
        self.batch_high += batch_high
        self.ema_low = batch_low if first else self.ema_low * EMA_MOMENTUM + batch_low * (1 - EMA_MOMENTUM)
        self.ema_high = batch_high if first else self.ema_high * EMA_MOMENTUM + batch_high * (1 - EMA_MOMENTUM)
        self._widen(largest)
        if self.reach:
            self.bins += count_bins(x, self.reach)
        groups = x.unflatten(1, (self.gram.shape[0], -1)).transpose(0, 1)
        self.gram.baddbmm_(groups.transpose(1, 2), groups)
        picked = torch.linspace(0, len(x) - 1, min(keep_rows, ROWS - len(self.rows), len(x)), device=x.device).long()
        self.rows = torch.cat([self.rows, x[picked]])
        self.count_top(torch.maximum(-lows, highs))
        self.tokens += len(x)
        self.batches += 1

    def _widen(self, largest: float) -> None:
        """Double the histogram's reach until it covers `largest`."""
        if largest == 0 or largest <= self.reach:
            return
        if not self.reach:
            self.reach = 2.0 ** max(math.ceil(math.log2(largest)), SMALLEST_REACH)
        while self.reach < largest:
            merged = self.bins.view(-1, 2).sum(1)
            self.bins = torch.zeros_like(self.bins)
            self.bins[BINS // 4 : 3 * BINS // 4] = merged
            self.reach *= 2

    def count_top(self, absmax: Tensor) -> None:
        """Add the channel absmax [E, C] of examples. An example with fewer than `top_size(C)` channels other than 0 is skipped."""
        size = top_size(absmax.shape[1])
        values, channels = absmax.topk(size, dim=1)
        counted = channels[values[:, -1] > 0]
        self.top += torch.bincount(counted.flatten(), minlength=absmax.shape[1])
        self.examples += len(counted)

    @property
    def absmax(self) -> Tensor:
        """[C] largest |x| of every channel."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def abs_mean(self) -> Tensor:
        """[C] mean |x| of every channel."""
        return (self.abs_sum / max(self.tokens, 1)).float()

    def scaled(self, scale: Tensor) -> "InputStatistics":
        """Statistics of x / scale ([C], positive), as exact as is possible without the data.

        Channel ranges, sums, Gram blocks and rows are exact. The histogram and the per-batch ranges mix channels. The histogram
        is rebuilt from the sample rows, and the averages become the global range. A scale also changes the order of an example's
        channels. `top` is therefore rebuilt from the sample rows, each taken as an example.
        """
        low, high, rows = self.low / scale, self.high / scale, self.rows / scale
        by_block = scale.view(self.gram.shape[0], -1)
        result = InputStatistics.empty(len(scale), self.low.device)
        result._widen(float(torch.maximum(low.abs(), high.abs()).max()))
        if result.reach:
            result.bins = count_bins(rows, result.reach)
        result.tokens, result.batches = self.tokens, self.batches
        result.low, result.high, result.rows = low, high, rows
        result.sum, result.abs_sum = self.sum / scale, self.abs_sum / scale
        result.ema_low, result.ema_high = float(low.min()), float(high.max())
        result.batch_low, result.batch_high = result.ema_low * self.batches, result.ema_high * self.batches
        result.count_top(rows.abs())
        result.gram = self.gram / by_block.unsqueeze(1) / by_block.unsqueeze(2)
        return result

    def joined(self, other: "InputStatistics") -> "InputStatistics":
        """Statistics of this tensor and another as if they were one. Both have the same channels and the same batches.

        Ranges, sums, bins and Gram blocks are exact. The averages of per-batch ranges become the global range. Sample rows are
        those of both, reduced to `ROWS`.
        """
        result = InputStatistics.empty(len(self.low), self.low.device)
        result._widen(max(self.reach, other.reach))
        for part in (copy.copy(self), copy.copy(other)):
            part._widen(result.reach)
            result.bins += part.bins
        result.tokens, result.batches = self.tokens + other.tokens, max(self.batches, other.batches)
        result.low, result.high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        result.sum, result.abs_sum = self.sum + other.sum, self.abs_sum + other.abs_sum
        result.ema_low, result.ema_high = float(result.low.min()), float(result.high.max())
        result.batch_low, result.batch_high = result.ema_low * result.batches, result.ema_high * result.batches
        result.gram = self.gram + other.gram
        rows = torch.cat([self.rows, other.rows])
        result.rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), ROWS), device=rows.device).long()]
        result.top, result.examples = self.top + other.top, self.examples + other.examples
        return result

    def tensors(self) -> dict[str, Tensor]:
        """All fields as tensors, for a file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for name, value in values.items()
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "InputStatistics":
        """The inverse of `tensors`."""
        values: dict[str, Any] = {f.name: tensors[f.name] for f in fields(cls)}
        for field in fields(cls):
            if field.type in (int, float):
                values[field.name] = field.type(values[field.name].item())
        return cls(**values)
