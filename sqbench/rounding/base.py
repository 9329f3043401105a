"""The interface of rounding: from a weight, its clipping ranges and the statistics of the layer's input to codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.formats.scheme import Scheme
from sqbench.parts.part import Part, Registry
from sqbench.statistics.inputs import InputStatistics


@dataclass(frozen=True)
class Rounding(Part, ABC):
    """Which code does each weight get?"""

    trains: ClassVar[bool] = False  # takes gradient steps on labelled examples, in sqbench.training
    stored: ClassVar[bool] = False  # reads what a checkpoint holds, in sqbench.checkpoints
    foreign: ClassVar[bool] = False  # is done by another tool to the whole model at once, in sqbench.running.foreign

    @property
    def key(self) -> str:
        """The key and the value with which messages about it begin."""
        return f"rounding={self.name}"

    @abstractmethod
    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        """The codes of a weight, and entries for its layer in the record.

        Args:
            layer: its name, for messages.
            weight: [out, in].
            stats: of the layer's input.
            limits: clipping ranges over the weight's blocks. None is each block's own minimum and maximum.
        """

    def refusal(self, scheme: Scheme) -> str | None:
        """The reason why this rounding makes no sense under a scheme. None if it does."""
        return None


ROUNDINGS: Registry[Rounding] = Registry("rounding")
