"""Ranges and sums of every channel, and averages of the batches' ranges."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sqbench.statistics.base import Batch, Collector

EMA_MOMENTUM = 0.9  # torch.ao's MovingAverageMinMaxObserver keeps 1 - 0.01 per step. 0.9 forgets within a 32-batch calibration.


@dataclass
class Extremes(Collector):
    """The range of every channel, and its sums.

    Attributes:
        tokens, batches: how many rows of C values, and how many calls, have been seen.
        low, high: [C] smallest and largest value of every channel.
        sum, abs_sum: [C] float64 sums of x and of |x|.
        routed: how many tokens are routed to the layer's expert of a mixture, if it was calibrated on all tokens because
            these are too few. -1 otherwise.
    """

    name: ClassVar[str] = "extremes"

    tokens: int
    batches: int
    low: Tensor
    high: Tensor
    sum: Tensor
    abs_sum: Tensor
    routed: int = -1

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Extremes":
        low, high = (torch.zeros(channels, device=device) for _ in range(2))
        total, absolute = (torch.zeros(channels, dtype=torch.float64, device=device) for _ in range(2))
        return cls(0, 0, low, high, total, absolute)

    def update(self, batch: Batch) -> None:
        low, high = batch.lows.amin(0), batch.highs.amax(0)
        self.low = low if self.batches == 0 else torch.minimum(self.low, low)
        self.high = high if self.batches == 0 else torch.maximum(self.high, high)
        self.sum += batch.rows.sum(0)
        self.abs_sum += batch.rows.abs().sum(0)
        self.tokens += len(batch.rows)
        self.batches += 1

    def scaled(self, scale: Tensor) -> "Extremes":
        low, high, total, absolute = (part / scale for part in (self.low, self.high, self.sum, self.abs_sum))
        return Extremes(self.tokens, self.batches, low, high, total, absolute, self.routed)

    def joined(self, other: "Extremes") -> "Extremes":
        return Extremes(
            self.tokens + other.tokens,
            max(self.batches, other.batches),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.sum + other.sum,
            self.abs_sum + other.abs_sum,
        )


@dataclass
class Averages(Collector):
    """Averages over batches of the batch's own range. They mix channels, so no scale and no second tensor can be pushed through.

    Attributes:
        batch_low, batch_high: sums over batches of the batch's own minimum and maximum.
        ema_low, ema_high: moving averages of the batch's own minimum and maximum.
        seen: number of batches.
    """

    name: ClassVar[str] = "averages"
    follows: ClassVar[bool] = False

    batch_low: float
    batch_high: float
    ema_low: float
    ema_high: float
    seen: int

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Averages":
        return cls(0.0, 0.0, 0.0, 0.0, 0)

    @classmethod
    def of_range(cls, extremes: Extremes) -> "Averages":
        """What the averages are if all batches have the same range."""
        low, high, count = float(extremes.low.min()), float(extremes.high.max()), extremes.batches
        return cls(low * count, high * count, low, high, count)

    def update(self, batch: Batch) -> None:
        self.batch_low += batch.low
        self.batch_high += batch.high
        first = self.seen == 0
        self.ema_low = batch.low if first else self.ema_low * EMA_MOMENTUM + batch.low * (1 - EMA_MOMENTUM)
        self.ema_high = batch.high if first else self.ema_high * EMA_MOMENTUM + batch.high * (1 - EMA_MOMENTUM)
        self.seen += 1

    def scaled(self, scale: Tensor) -> None:
        return None

    def joined(self, other: "Averages") -> None:
        return None
