"""Declarations of metrics. An evaluation makes them, a record carries them, and tables read them. Nobody guesses from a name."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqbench.comparison.outcomes import Outcome

LOWER, HIGHER = "lower", "higher"
LAST = 1000  # the place of a metric that nobody gave one


@dataclass(frozen=True)
class Metric:
    """What is known of a metric besides its value. The defaults stand for a metric of which nothing is known.

    Attributes:
        name: its name in records and tables. A metric of one task is `task/metric`.
        better: `lower` or `higher`. None if that is unknown; nothing is then called best.
        unit: the unit in which it is shown, "%" for example.
        scale: one shown unit in the units of the record: 0.01 for percent of a share, 1e6 for megabytes of bytes.
        decimals: of a shown value.
        place: its place in the order of tables.
        part: whether it belongs to one task of several. Tables show the mean over tasks first.
        exact: whether it is counted and no average over examples, such as a size.
        outcome: the column of the samples that it averages. None if no test between two points is possible.
        timed: the column of seconds behind a speed. Its change is a factor: how many times as fast as float.
    """

    name: str
    better: str | None = None
    unit: str = ""
    scale: float = 1.0
    decimals: int = 4
    place: int = LAST
    part: bool = False
    exact: bool = False
    outcome: Outcome | None = None
    timed: str | None = None

    def __post_init__(self) -> None:
        if self.better not in (None, LOWER, HIGHER):
            raise ValueError(f"{self.name}: better={self.better}: must be {LOWER}, {HIGHER} or None")

    @property
    def lower(self) -> bool | None:
        """Whether less of it is better. None if that is unknown."""
        return None if self.better is None else self.better == LOWER

    @property
    def speed(self) -> bool:
        """Whether its change is a factor."""
        return self.timed is not None

    @property
    def column(self) -> str | None:
        """The column of the samples behind it. None if there is none."""
        return self.timed if self.outcome is None else self.outcome.column

    @property
    def rank(self) -> tuple[int, bool, str]:
        """A sort key: the order of tables, single tasks behind the mean over tasks, then the alphabet."""
        return self.place, self.part, self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record, without the name and what is as by default. `Metric.of` reads it."""
        told = {name: value for name, value in asdict(self).items() if name != "name" and value != _DEFAULTS[name]}
        return told if self.outcome is None else told | {"outcome": self.outcome.as_dict()}

    @classmethod
    def of(cls, name: str, told: Mapping[str, Any]) -> "Metric":
        if "outcome" in told:
            told = {**told, "outcome": Outcome.of(told["outcome"])}
        return cls(name, **told)


_DEFAULTS = {field.name: field.default for field in fields(Metric)}

SIZE = Metric("weight_bytes", LOWER, "MB", 1e6, 1, place=900, exact=True)  # of the weights as stored; of every evaluation


def main_metric(metrics: Iterable[Metric]) -> Metric:
    """The first of these metrics in the order of tables, single tasks and sizes last. One without a name if there is none."""
    found = list(metrics)
    whole = [metric for metric in found if not metric.part and not metric.exact]
    return min(whole or found, key=lambda metric: metric.rank, default=Metric(""))


def agreed(metrics: Collection[Metric]) -> Metric:
    """What several declarations of one metric say together, without outcome. A direction on which they disagree is unknown."""
    directions = {metric.better for metric in metrics} - {None}
    return replace(next(iter(metrics)), better=directions.pop() if len(directions) == 1 else None, outcome=None)
