"""Histogram calibration: the range with the least expected squared error."""

from dataclasses import dataclass

from sqbench.quant import ranges
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.statistics import InputStatistics
from sqbench.ranges.base import RANGES, Ranges, with_static_inputs


@RANGES.register("histogram")
@dataclass(frozen=True)
class Histogram(Ranges):
    """Both ends of an activation's range are searched for the least squared error (after torch.ao's HistogramObserver)."""

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, "histogram")

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        return ranges.histogram(stats, fmt)
