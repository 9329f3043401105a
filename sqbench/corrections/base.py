"""The interface of corrections: a repair of one layer after its weight is rounded."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from sqbench.formats.codec import EncodedTensor
from sqbench.parts.part import Part, Registry
from sqbench.statistics.inputs import InputStatistics


@dataclass(frozen=True)
class Correction(Part, ABC):
    """What is repaired after rounding?"""

    @abstractmethod
    def correct(self, layer: nn.Module, encoded: EncodedTensor, stats: InputStatistics) -> tuple[nn.Module, dict[str, Any]]:
        """The repaired float layer, whose weight is still the float one, and entries for the layer in the record.

        Args:
            layer: the float layer. It does not change.
            encoded: its weight [out, in].
            stats: of the layer's input.
        """


CORRECTIONS: Registry[Correction] = Registry("corrections")
