"""Ranges that minimise the quantization error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sqbench.errors import UserError
from sqbench.methods.base import Effort, Method, register, with_static_inputs
from sqbench.quant import ranges
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.statistics import InputStatistics


@register("mse")
@dataclass(frozen=True)
class Mse(Method):
    """Shrink the min-max range and keep the ratio with the lowest sum |error|^norm, for activations and for weight blocks.

    The grid has the ratios 1/steps, 2/steps, ..., 1.

    norm = 2 is the squared error (OMSE, Choukroun et al., 2019). Two public toolkits use 2.4.
    """

    norm: float = 2.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.norm <= 16:
            raise UserError(f"method.norm={self.norm}: the norm must be a number from 1 to 16, for example 2 or 2.4")
        if self.steps < 2:
            raise UserError(f"method.steps={self.steps}: there must be at least 2 steps; 100 are steps of 0.01")

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        return Effort(1.0 + self.steps * bool(scheme.get("weights")))

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, "histogram")

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        return ranges.mse(stats, fmt, self.norm, self.steps)

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> ranges.Limits | None:
        return ranges.shrink_blocks(weight, fmt, self.norm, self.steps)
