"""Studies: groups of comparable points of a results folder, each with its float baseline."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from sqbench.comparison import Metric, main_metric
from sqbench.records.fields import BASIS, EXAMPLES
from sqbench.reporting.frame import metrics_of
from sqbench.reporting.order import labels
from sqbench.reporting.selection import select

# Results that differ in one of these answer different questions. They never share an axis.
KEYS = tuple(dict.fromkeys([*(name for name in BASIS if name != "device"), *EXAMPLES]))


@dataclass(frozen=True)
class Study:
    """Points that may be compared, and their float baseline.

    Attributes:
        label: the settings that separate it from the other studies.
        frame: its rows of the long frame.
        metric: the deciding metric. It is the first that was compared with the float model.
    """

    label: str
    frame: pd.DataFrame
    metric: Metric

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics with a change against the float model, and the divergence from it. `metric` comes first."""
        every = metrics_of(self.frame)
        compared = metrics_of(self.frame, compared=True)
        names = [name for name in every if name in compared] + ["kl_to_fp"]
        others = dict.fromkeys(name for name in names if name in every and name != self.metric.name)
        return [self.metric, *(every[name] for name in others)]

    @cached_property
    def points(self) -> list[str]:
        return [name for name in dict.fromkeys(self.frame["point_id"]) if name]


def studies(frame: pd.DataFrame) -> list[Study]:
    """The studies of a long frame. Accuracy comes before speed, then large studies before small ones.

    A float baseline is in every study that has it as reference.
    """
    texts = pd.DataFrame({name: labels(frame[name]) for name in KEYS})
    measured = list(texts[frame["method"] != "fp"].drop_duplicates().itertuples(index=False, name=None))
    covered = {key[:-1] for key in measured}
    alone = texts[frame["method"] == "fp"].drop_duplicates().itertuples(index=False, name=None)
    keys = [*measured, *(key for key in alone if key[:-1] not in covered)]
    always = ("model", "data", "eval")
    telling = [name for at, name in enumerate(KEYS) if name in always or len({key[at] for key in keys}) > 1]
    found = []
    for key in keys:
        values = dict(zip(KEYS, key, strict=True))
        rows = select(frame, **{name: [value] for name, value in values.items()})
        parts = [values[name] if name in always else f"{name} {values[name]}" for name in telling if values[name]]
        found.append(Study(" · ".join(parts), rows, headline(rows)))
    return sorted(found, key=lambda study: (study.metric.speed, -len(study.points)))


def headline(rows: pd.DataFrame) -> Metric:
    """The deciding metric of a study."""
    return main_metric((metrics_of(rows, compared=True) or metrics_of(rows)).values())
