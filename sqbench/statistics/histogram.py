"""A streaming histogram of all values of a tensor."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sqbench.statistics.base import Batch, Collector

BINS = 4096  # of the streaming histogram. Its reach is at most twice the largest |x|: at least 2048 bins cover [-absmax, absmax]
SMALLEST_REACH = -100  # exponent of the smallest reach, a power of two: bins per unit must fit float32


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
class Bins(Collector):
    """Counts of all values. They mix channels, so no scale can be pushed through.

    Attributes:
        bins: [BINS] int64 counts over [-reach, reach].
        reach: a power of two, so that doubling it merges neighbouring bins exactly. 0 if all values were 0.
    """

    name: ClassVar[str] = "histogram"
    follows: ClassVar[bool] = False

    bins: Tensor
    reach: float

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Bins":
        return cls(torch.zeros(BINS, dtype=torch.int64, device=device), 0.0)

    @classmethod
    def of_rows(cls, rows: Tensor, largest: float) -> "Bins":
        """The histogram of sample rows [R, C] alone, over the reach of a tensor with this largest |x|."""
        result = cls.empty(rows.shape[1], rows.device)
        result._widen(largest)
        if result.reach:
            result.bins = count_bins(rows, result.reach)
        return result

    def update(self, batch: Batch) -> None:
        self._widen(max(-batch.low, batch.high))
        if self.reach:
            self.bins += count_bins(batch.rows, self.reach)

    def scaled(self, scale: Tensor) -> None:
        return None

    def joined(self, other: "Bins") -> "Bins":
        one, two = replace(self), replace(other)
        for part in (one, two):
            part._widen(max(self.reach, other.reach))
        return Bins(one.bins + two.bins, one.reach)

    def _widen(self, largest: float) -> None:
        """Double the reach until it covers `largest`."""
        if largest == 0 or largest <= self.reach:
            return
        if not self.reach:
            self.reach = 2.0 ** max(math.ceil(math.log2(largest)), SMALLEST_REACH)
        while self.reach < largest:
            merged = self.bins.view(-1, 2).sum(1)
            self.bins = torch.zeros_like(self.bins)
            self.bins[BINS // 4 : 3 * BINS // 4] = merged
            self.reach *= 2
