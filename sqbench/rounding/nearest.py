"""Round to nearest: each weight goes to the closest code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sqbench.formats import codec
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.parts.part import Effort
from sqbench.rounding.base import ROUNDINGS, Rounding
from sqbench.statistics.inputs import InputStatistics


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
