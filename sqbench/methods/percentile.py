"""Percentile calibration: the rarest values are clipped."""

from dataclasses import dataclass

from sqbench.errors import UserError
from sqbench.methods.base import Method, register, with_static_inputs
from sqbench.quant import ranges
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.statistics import InputStatistics


@register("percentile")
@dataclass(frozen=True)
class Percentile(Method):
    """Activation ranges end at a percentile of the calibration values.

    The default is 99.999, because 99.9 takes a ViT-B/32 at W8A8 from 75.9 % to 7.2 % (Brevitas' published table).
    """

    percentile: float = 99.999

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UserError(f"method.percentile={self.percentile}: must be a number above 50 and up to 100, 99.999 for example")

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, "histogram")

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        return ranges.percentile(stats, fmt, self.percentile)
