"""Sample rows, and the channels that are largest in many examples. The outlier report reads both."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sqbench.statistics.base import Batch, Collector

ROWS = 128  # sample rows kept in total, for any length of calibration
TOP_SHARE = 0.01  # share of the channels that count as an example's largest


def top_size(channels: int) -> int:
    """How many of an example's channels count as its largest: one in a hundred, at least one."""
    return max(1, round(TOP_SHARE * channels))


def count_top(absmax: Tensor) -> tuple[Tensor, int]:
    """In how many examples each channel is among the `top_size(C)` largest, [C] int64, and how many examples were counted.

    An example with fewer than `top_size(C)` channels other than 0 is not counted.

    Args:
        absmax: [examples, C] largest |x| of every channel.
    """
    values, channels = absmax.topk(top_size(absmax.shape[1]), dim=1)
    counted = channels[values[:, -1] > 0]
    return torch.bincount(counted.flatten(), minlength=absmax.shape[1]), len(counted)


@dataclass
class Rows(Collector):
    """Sample rows and counts of the largest channels.

    Attributes:
        rows: [R, C] sample rows, at most ROWS, evenly spaced within their batch.
        top: [C] int64, in how many examples a channel's absmax was among the `top_size(C)` largest.
        examples: how many examples `top` has counted. Each has at least `top_size(C)` channels other than 0.
    """

    name: ClassVar[str] = "rows"

    rows: Tensor
    top: Tensor
    examples: int

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Rows":
        return cls(torch.zeros(0, channels, device=device), torch.zeros(channels, dtype=torch.int64, device=device), 0)

    def update(self, batch: Batch) -> None:
        x = batch.rows
        picked = torch.linspace(0, len(x) - 1, min(batch.keep_rows, ROWS - len(self.rows), len(x)), device=x.device).long()
        self.rows = torch.cat([self.rows, x[picked]])
        top, examples = count_top(torch.maximum(-batch.lows, batch.highs))
        self.top += top
        self.examples += examples

    def scaled(self, scale: Tensor) -> "Rows":
        """Rows are exact. A scale changes the order of an example's channels, so `top` is counted anew, a row as an example."""
        rows = self.rows / scale
        return Rows(rows, *count_top(rows.abs()))

    def joined(self, other: "Rows") -> "Rows":
        """Sample rows are those of both, reduced to `ROWS`."""
        rows = torch.cat([self.rows, other.rows])
        kept = rows[torch.linspace(0, len(rows) - 1, min(len(rows), ROWS), device=rows.device).long()]
        return Rows(kept, self.top + other.top, self.examples + other.examples)
