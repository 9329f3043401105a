"""What every method is: a frozen dataclass of its parameters with three questions that it may answer differently.

    moves            which scales to move between layers before anything is rounded   (SmoothQuant, AWQ)
    activation_limits  the clipping range of an input, from its statistics             (the range estimators)
    weight_limits    the clipping ranges of a weight's blocks                          (mse, AWQ)

`apply.quantize` asks them and does the rest. A method sees the float model, statistics and the scheme; never data or files.
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
    """What a method is given: the float model (never changed), what reads what, the statistics, and the formats to reach."""

    model: Model
    statistics: Statistics
    scheme: Scheme

    @cached_property
    def topology(self) -> Topology:
        """That of the model, as far as the scheme's layers go."""
        return self.model.topology.restricted(self.scheme.layers)

    def sites(self, group: Group) -> tuple[str, ...]:
        """Sites of a group's readers: more than one where some read another shape, order or part of what the source writes."""
        return tuple(dict.fromkeys(self.topology.site[reader] for reader in group.readers))

    def stats(self, group: Group) -> InputStatistics:
        """Statistics of what a group's readers read, all of them together."""
        first, *others = (self.statistics.inputs[site] for site in self.sites(group))
        return reduce(InputStatistics.joined, others, first)


@dataclass(frozen=True)
class Move:
    """Scales [channels of the source] to fold into a group, the exponent they came from, and what the record should say."""

    group: Group
    scale: Tensor
    alpha: float
    about: dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much a method works, for a plan made before anything is loaded.

    Attributes:
        roundings: of every weight.
        replays: of the sample that a search replays, each about one pass through all layers.
        learnt: images of a training split -> images of all gradient steps, and how many steps.
    """

    roundings: float = 1.0
    replays: float = 0.0
    learnt: Callable[[int], tuple[int, int]] = lambda images: (0, 0)


@dataclass(frozen=True)
class Method:
    """Round to nearest with min-max ranges, unless a subclass says otherwise."""

    needs_alpha: ClassVar[bool] = False
    is_float: ClassVar[bool] = False  # leaves the model as it is, whatever the scheme
    trains: ClassVar[bool] = False  # takes gradient steps on labelled examples: sqbench.training does that

    def moves(self, task: Task) -> list[Move]:
        """Scales to fold, in any order."""
        return []

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        """How much it works under a scheme (as an identity has it). What is not said here is not foreseen."""
        return Effort()

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> ranges.Limits:
        """Clipping range (lo, hi) of an input with a static per-tensor format, 0-dim each."""
        return ranges.minmax(stats, fmt)

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> ranges.Limits | None:
        """Clipping ranges over the blocks of a weight [out, in]; None takes each block's own minimum and maximum."""
        return None


METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Make a method known under a name; `conf/method/<name>.yaml` holds its parameters."""

    def add(cls: M) -> M:
        assert name not in METHODS, name
        METHODS[name] = cls
        return cls

    return add


def parse_alpha(value: Any, key: str = "alpha") -> float | str:
    """A number in [0, 1], or `auto`.

    Raises:
        UserError: anything else.
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
