"""The interface of transforms, and the changes of a float model that they ask for. No change alters the model's function."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from sqbench.models import folding
from sqbench.models.batchnorm import fold_batchnorm
from sqbench.models.folding import Group
from sqbench.parts.part import Part, Registry
from sqbench.parts.task import Task
from sqbench.statistics.inputs import InputStatistics


class Change(ABC):
    """A change of a model's float layers that must not change the model's function. `proof.sound` finds those that do."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in the record."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The modules that it changes."""

    @property
    def scales(self) -> dict[str, Tensor]:
        """Layer -> the divisor of its input, [in_features]. Layers whose input stays the same are left out."""
        return {}

    @abstractmethod
    def apply(self, module: nn.Module, root: str = "") -> None:
        """Make the change in a part of the model, whose name in the model is `root`. Parameters are replaced, not written to."""

    def through(self, task: Task, inputs: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
        """The statistics of the sites that change, from those before."""
        return {}

    def about(self) -> dict[str, Any] | None:
        """The entry for the record. None for a change that needs none."""
        return None

    def inside(self, place: str) -> bool:
        """Whether a module holds all parts that this changes."""
        return all(not place or part == place or part.startswith(f"{place}.") for part in self.parts)


@dataclass(frozen=True)
class Move(Change):
    """Scales that move from the output channels of a source into the input channels of its readers.

    Attributes:
        scale: [channels of the source].
        alpha: the exponent that it came from.
        notes: for the record.
    """

    group: Group
    scale: Tensor
    alpha: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.group)

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.group.source, *self.group.readers, *self.group.followers)

    @cached_property
    def scales(self) -> dict[str, Tensor]:
        return dict.fromkeys(self.group.readers, self.group.spread(self.scale))

    def apply(self, module: nn.Module, root: str = "") -> None:
        folding.fold(module, self.group, self.scale, root)

    def through(self, task: Task, inputs: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
        spread = self.group.spread(self.scale)
        return {site: inputs[site].scaled(spread) for site in task.sites(self.group)}

    def about(self) -> dict[str, Any]:
        return {
            "source": self.group.source,
            "readers": list(self.group.readers),
            **({"followers": list(self.group.followers)} if self.group.followers else {}),
            "alpha": self.alpha,
            "scale_min": float(self.scale.min()),
            "scale_median": float(self.scale.median()),
            "scale_max": float(self.scale.max()),
            **self.notes,
        }


@dataclass(frozen=True)
class BatchNormFold(Change):
    """A BatchNorm that becomes part of the layer before it."""

    layer: str
    norm: str

    @property
    def name(self) -> str:
        return f"{self.layer} -> {self.norm}"

    @property
    def parts(self) -> tuple[str, ...]:
        return self.layer, self.norm

    def apply(self, module: nn.Module, root: str = "") -> None:
        fold_batchnorm(module, *(name.removeprefix(root).removeprefix(".") for name in self.parts))


@dataclass(frozen=True)
class Transform(Part, ABC):
    """Which equivalent float model is easier to quantize?"""

    @abstractmethod
    def changes(self, task: Task) -> Sequence[Change]:
        """The changes to make, in the order in which they are made.

        Raises:
            UserError: the model has nothing that this transform could change.
        """


TRANSFORMS: Registry[Transform] = Registry("transforms")
