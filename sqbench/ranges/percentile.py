"""Percentile calibration: the rarest values are clipped."""

from dataclasses import dataclass
from typing import ClassVar

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.ranges import estimators
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("percentile")
@dataclass(frozen=True)
class Percentile(Ranges):
    """Activation ranges end at a percentile of the calibration values.

    The default is 99.999, because 99.9 takes a ViT-B/32 at W8A8 from 75.9 % to 7.2 % (Brevitas' published table).
    """

    percentile: float = 99.999

    def __post_init__(self) -> None:
        self.require("percentile", 50 < self.percentile <= 100, "must be a number above 50 and up to 100, 99.999 for example")

    reads: ClassVar[tuple[str, ...]] = ("histogram",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.percentile(stats, fmt, self.percentile)
