"""Entropy calibration: the range that loses the least information."""

from dataclasses import dataclass

from sqbench.quant import ranges
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.statistics import InputStatistics
from sqbench.ranges.base import RANGES, Ranges, with_static_inputs


@RANGES.register("entropy")
@dataclass(frozen=True)
class Entropy(Ranges):
    """Activation ranges after TensorRT's KL-divergence recipe (Migacz, 2017), for any bit-width. Zeros do not count."""

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, "histogram")

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        return ranges.entropy(stats, fmt)
