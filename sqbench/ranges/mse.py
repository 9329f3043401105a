"""Ranges that minimise the quantization error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.parts.part import Effort
from sqbench.ranges import estimators
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("mse")
@dataclass(frozen=True)
class Mse(Ranges):
    """Shrink the min-max range and keep the ratio with the lowest sum |error|^norm, for activations and for weight blocks.

    The grid has the ratios 1/steps, 2/steps, ..., 1.

    norm = 2 is the squared error (OMSE, Choukroun et al., 2019). Two public toolkits use 2.4.
    """

    norm: float = 2.0
    steps: int = 100

    def __post_init__(self) -> None:
        self.require("norm", 1 <= self.norm <= 16, "must be a number from 1 to 16, for example 2 or 2.4")
        self.require("steps", self.steps >= 2, "must be 2 or more; 100 are steps of 0.01")

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        return Effort(self.steps * bool(scheme.get("weights")))

    reads: ClassVar[tuple[str, ...]] = ("histogram",)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        return estimators.mse(stats, fmt, self.norm, self.steps)

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> Limits | None:
        return estimators.shrink_blocks(weight, fmt, self.norm, self.steps)
