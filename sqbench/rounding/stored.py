"""Codes that were chosen elsewhere: a checkpoint holds them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.rounding.base import ROUNDINGS, Rounding
from sqbench.statistics.inputs import InputStatistics


@ROUNDINGS.register("stored")
@dataclass(frozen=True)
class Stored(Rounding):
    """The codes of a checkpoint (`sqbench.checkpoints`). There is no float weight to round."""

    stored: ClassVar[bool] = True

    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        raise AssertionError("codes of a checkpoint are read, not chosen")
