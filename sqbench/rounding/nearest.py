"""Round to nearest: each weight goes to the closest code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sqbench.quant import codec
from sqbench.quant.codec import EncodedTensor
from sqbench.quant.formats import Format
from sqbench.quant.ranges import Limits
from sqbench.quant.statistics import InputStatistics
from sqbench.recipes.part import Effort
from sqbench.rounding.base import ROUNDINGS, Rounding


@ROUNDINGS.register("nearest")
@dataclass(frozen=True)
class Nearest(Rounding):
    """The closest code. Ties go to the even multiple of the scale."""

    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        return codec.encode(weight, fmt, limits), {}

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        return Effort(1.0)
