"""Studies: groups of comparable points of a results folder, each with its float baseline."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from sqbench.reporting.order import labels, main_metric
from sqbench.reporting.selection import select
from sqbench.reporting.units import SPEEDS

# Results that differ in one of these answer different questions. They never share an axis.
BASIS = ("model", "head", "data", "eval", "window", "windows", "images", "beams", "ops")


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
    metric: str

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics with a change against the float model, and the divergence from it. `metric` comes first."""
        compared = [name for name in dict.fromkeys(self.frame["metric"]) if f"delta_{name}" in set(self.frame["metric"])]
        others = [name for name in (*compared, "kl_to_fp") if name in set(self.frame["metric"]) and name != self.metric]
        return [self.metric, *dict.fromkeys(others)]

    @cached_property
    def points(self) -> list[str]:
        return [name for name in dict.fromkeys(self.frame["point_id"]) if name]


def studies(frame: pd.DataFrame) -> list[Study]:
    """The studies of a long frame. Accuracy comes before speed, then large studies before small ones.

    A float baseline is in every study that has it as reference.
    """
    texts = pd.DataFrame({name: labels(frame[name]) for name in BASIS})
    measured = list(texts[frame["method"] != "fp"].drop_duplicates().itertuples(index=False, name=None))
    covered = {key[:-1] for key in measured}
    alone = texts[frame["method"] == "fp"].drop_duplicates().itertuples(index=False, name=None)
    keys = [*measured, *(key for key in alone if key[:-1] not in covered)]
    always = ("model", "data", "eval")
    telling = [name for at, name in enumerate(BASIS) if name in always or len({key[at] for key in keys}) > 1]
    found = []
    for key in keys:
        values = dict(zip(BASIS, key, strict=True))
        rows = select(frame, **{name: [value] for name, value in values.items()})
        parts = [values[name] if name in always else f"{name} {values[name]}" for name in telling if values[name]]
        found.append(Study(" · ".join(parts), rows, headline(rows)))
    return sorted(found, key=lambda study: (study.metric in SPEEDS, -len(study.points)))


def headline(rows: pd.DataFrame) -> str:
    """The deciding metric of a study."""
    compared = [name.removeprefix("delta_") for name in rows["metric"] if name.startswith("delta_")]
    return main_metric(compared or rows["metric"])
