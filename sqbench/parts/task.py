"""The input of every part of a recipe: a float model, what calibration saw of it, and the wanted formats."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

from sqbench.calibration import Statistics
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.folding import Group, share
from sqbench.models.topology import Topology
from sqbench.statistics.inputs import InputStatistics

if TYPE_CHECKING:
    from sqbench.transforms.base import Change


@dataclass(frozen=True)
class Task:
    """A float model (never changed), its topology, its statistics and the wanted formats."""

    model: Model
    statistics: Statistics
    scheme: Scheme

    @cached_property
    def topology(self) -> Topology:
        """The topology of the model, restricted to the scheme's layers."""
        return self.model.topology.restricted(self.scheme.layers)

    def sites(self, group: Group) -> tuple[str, ...]:
        """Sites of a group's readers. More than one if some read the source's output in another shape or order, or a part of it."""
        return tuple(dict.fromkeys(self.topology.site[reader] for reader in group.readers))

    def stats(self, group: Group) -> InputStatistics:
        """Joint statistics of the tensors that a group's readers read."""
        first, *others = (self.statistics.inputs[site] for site in self.sites(group))
        return reduce(InputStatistics.joined, others, first)

    def of_layer(self, layer: str) -> InputStatistics:
        """Statistics of what a layer reads."""
        return self.statistics.inputs[self.topology.site[layer]]

    def after(self, changes: "Sequence[Change]") -> "Task":
        """The task of the changed model. Its tensors that do not change are those of this model."""
        if not changes:
            return self
        module = share(self.model.module)
        inputs = dict(self.statistics.inputs)
        for change in changes:
            change.apply(module)
            inputs |= change.through(self, inputs)
        other = replace(self, model=self.model.with_module(module, None), statistics=replace(self.statistics, inputs=inputs))
        other.__dict__["topology"] = self.topology
        return other
