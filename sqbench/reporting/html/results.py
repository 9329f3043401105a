"""What a results folder holds, read for the page: records as one long frame, and the studies whose numbers may be compared."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.records.store import SCHEMA, Store
from sqbench.reporting.frame import results_frame
from sqbench.reporting.order import FIELDS, labels, main_metric
from sqbench.reporting.selection import select
from sqbench.reporting.units import number

# Results that differ in one of these are answers to different questions: no axis holds both.
BASIS = ("model", "head", "data", "eval", "window", "windows", "images", "beams", "ops")
_BARE = tuple(name for name in BASIS if name != "ops")  # what a float baseline has


@dataclass(frozen=True)
class Study:
    """Points that may be compared, and their float baseline.

    Attributes:
        label: what tells it from the other studies.
        frame: the rows of the long frame.
        metric: the one that decides: the first that was compared with the float model.
    """

    label: str
    frame: pd.DataFrame
    metric: str

    @cached_property
    def metrics(self) -> list[str]:
        """Those with a change against the float model and the divergence from it, `metric` first."""
        compared = [name for name in dict.fromkeys(self.frame["metric"]) if f"delta_{name}" in set(self.frame["metric"])]
        others = [name for name in (*compared, "kl_to_fp") if name in set(self.frame["metric"]) and name != self.metric]
        return [self.metric, *dict.fromkeys(others)]

    @cached_property
    def points(self) -> list[str]:
        return [name for name in dict.fromkeys(self.frame["point_id"]) if name]


@dataclass(frozen=True)
class Unread:
    """A record of another schema that cannot be laid out beside ours: what it says, as far as it can be told."""

    point_id: str
    schema: str
    status: str
    told: str


@dataclass(frozen=True)
class Results:
    """A results folder.

    Attributes:
        records: point id -> record without `quantized`, all that can be laid out.
        unread: the others.
        frame: the long frame of `records`.
    """

    folder: Path
    records: dict[str, dict[str, Any]]
    unread: tuple[Unread, ...]
    frame: pd.DataFrame
    studies: tuple[Study, ...]

    def full(self, points: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Records with `quantized`, in the order asked for."""
        store = Store(self.folder)
        return (record for point in points if (record := store.read(point)) is not None)


def read(folder: Path) -> Results:
    """Read a results folder that exists."""
    records, unread = {}, []
    for record in Store(folder).records(brief=True):
        if record.get("schema") == SCHEMA or (reason := _why_not(record)) is None:
            records[record["point_id"]] = record
        else:
            unread.append(_unread(record, reason))
    frame = results_frame(records.values())
    return Results(folder, records, tuple(unread), frame, tuple(studies(frame)))


def studies(frame: pd.DataFrame) -> list[Study]:
    """The studies of a long frame, the largest first; a float baseline is in every study that it is the reference of."""
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
    return sorted(found, key=lambda study: -len(study.points))


def headline(rows: pd.DataFrame) -> str:
    """The metric that decides."""
    compared = [name.removeprefix("delta_") for name in rows["metric"] if name.startswith("delta_")]
    return main_metric(compared or rows["metric"])


def point_rows(frame: pd.DataFrame) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every point of a frame, the float baselines included: its fields as texts, and by metric its row as a named tuple."""
    keys = ["point_id", "status", *FIELDS, "seed"]
    texts = zip(*(labels(frame[name]) for name in keys), strict=True)
    found: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for key, row in zip(texts, frame.itertuples(index=False), strict=True):
        found[key][row.metric] = row
    return [(dict(zip(keys, key, strict=True)), rows) for key, rows in found.items()]


def _why_not(record: dict[str, Any]) -> str | None:
    """What a record of another schema lacks to stand beside ours; None if nothing."""
    try:
        point_rows(results_frame([record]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__} {error}"
    return None


def _unread(record: dict[str, Any], reason: str) -> Unread:
    metrics = record.get("metrics")
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    told = ", ".join(f"{name} {number(value, name)}" for name, value in numbers if isinstance(value, int | float))
    name, schema, status = (str(record.get(key, "?")) for key in ("point_id", "schema", "status"))
    return Unread(name, schema, status, told or f"no metrics; not readable: {reason}")
