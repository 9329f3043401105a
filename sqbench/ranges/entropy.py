"""Entropy calibration: the range that loses the least information."""

from dataclasses import dataclass
from typing import ClassVar

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.ranges import estimators
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("entropy")
@dataclass(frozen=True)
class Entropy(Ranges):
    """Activation ranges after TensorRT's KL-divergence recipe (Migacz, 2017), for any bit-width. Zeros do not count."""

    reads: ClassVar[tuple[str, ...]] = ("histogram",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.entropy(stats, fmt)
