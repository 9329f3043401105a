"""Min-max calibration and its two averaged variants, which other tools also call min-max."""

from dataclasses import dataclass
from typing import ClassVar

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.ranges import estimators
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("minmax")
@dataclass(frozen=True)
class MinMax(Ranges):
    """Activation ranges are the global minimum and maximum over the calibration set (Jacob et al., 2018)."""


@RANGES.register("ema_minmax")
@dataclass(frozen=True)
class EmaMinMax(Ranges):
    """Activation ranges are moving averages of each batch's minimum and maximum (torch.ao's MovingAverageMinMaxObserver)."""

    reads: ClassVar[tuple[str, ...]] = ("averages",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.ema_minmax(stats, fmt)


@RANGES.register("mean_minmax")
@dataclass(frozen=True)
class MeanMinMax(Ranges):
    """Activation ranges are the means of each batch's minimum and maximum."""

    reads: ClassVar[tuple[str, ...]] = ("averages",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.mean_minmax(stats, fmt)
