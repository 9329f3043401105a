"""The base of every method: a frozen dataclass of its parameters. A method may answer three questions in its own way.

    moves            which scales to move between layers before anything is rounded   (SmoothQuant, AWQ)
    activation_limits  the clipping range of an input, from its statistics             (the range estimators)
    weight_limits    the clipping ranges of a weight's blocks                          (mse, AWQ)

`apply.quantize` asks them and does the rest. A method sees the float model, the statistics and the scheme, but never data or files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.folding import Group
from sqbench.models.topology import Topology
from sqbench.quant import ranges
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.statistics import InputStatistics


@dataclass(frozen=True)
class Task:
    """The input of a method: the float model (never changed), its topology, the statistics and the wanted formats."""

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


@dataclass(frozen=True)
class Move:
    """Scales [channels of the source] to fold into a group, the exponent they came from, and notes for the record."""

    group: Group
    scale: Tensor
    alpha: float
    about: dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """The amount of work of a method, for a plan that is made before anything is loaded.

    Attributes:
        roundings: how often every weight is rounded.
        replays: how often a search replays its sample. Each replay is about one pass through all layers.
        learnt: number of images of a training split -> number of images of all gradient steps, and of steps.
    """

    roundings: float = 1.0
    replays: float = 0.0
    learnt: Callable[[int], tuple[int, int]] = lambda images: (0, 0)


@dataclass(frozen=True)
class Method:
    """Round to nearest with min-max ranges, unless a subclass says otherwise."""

    needs_alpha: ClassVar[bool] = False
    is_float: ClassVar[bool] = False  # leaves the model as it is under any scheme
    trains: ClassVar[bool] = False  # takes gradient steps on labelled examples, in sqbench.training

    def moves(self, task: Task) -> list[Move]:
        """Scales to fold, in any order."""
        return []

    def needs(self, scheme: Scheme) -> frozenset[str]:
        """Names of the collectors (`sqbench.statistics`) that the method reads, besides those that always run."""
        return frozenset()

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        """The work of the method under a scheme, in the form of a point's identity. A plan foresees only this work."""
        return Effort()

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        """The clipping range (lo, hi) of an input with a static per-tensor format, 0-dim each."""
        return ranges.minmax(stats, fmt)

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> ranges.Limits | None:
        """Clipping ranges over the blocks of a weight [out, in]. None takes each block's own minimum and maximum."""
        return None


def with_static_inputs(scheme: Scheme, *names: str) -> frozenset[str]:
    """The collectors that a static range of inputs needs. Nothing for a scheme without such ranges."""
    static = scheme.activations is not None and not scheme.activations.dynamic
    return frozenset(names) if static else frozenset()


METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Register a method under a name. `conf/method/<name>.yaml` holds its parameters."""

    def add(cls: M) -> M:
        assert name not in METHODS, name
        METHODS[name] = cls
        return cls

    return add


def parse_alpha(value: Any, key: str = "alpha") -> float | str:
    """Return a number in [0, 1], or `auto`.

    Raises:
        UserError: the value is anything else.
    """
    if value == "auto":
        return "auto"
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if 0 <= number <= 1:
        return abs(number)  # -0.0 is 0
    raise UserError(f"{key}={value}: must be a number from 0 to 1, or auto (the method searches)")
