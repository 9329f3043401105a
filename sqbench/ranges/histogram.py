"""Histogram calibration: the range with the least expected squared error."""

from dataclasses import dataclass
from typing import ClassVar

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.ranges import estimators
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("histogram")
@dataclass(frozen=True)
class Histogram(Ranges):
    """Both ends of an activation's range are searched for the least squared error (after torch.ao's HistogramObserver)."""

    reads: ClassVar[tuple[str, ...]] = ("histogram",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.histogram(stats, fmt)
