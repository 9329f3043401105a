"""A results folder read for the page: its records, one long frame, and the studies of comparable numbers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.records.store import SCHEMA, Store
from sqbench.reporting.frame import results_frame
from sqbench.reporting.order import FIELDS, labels
from sqbench.reporting.studies import Study, studies
from sqbench.reporting.units import number


@dataclass(frozen=True)
class Unread:
    """A record of another schema that cannot stand beside current ones, with the readable part of its content."""

    point_id: str
    schema: str
    status: str
    told: str


@dataclass(frozen=True)
class Results:
    """A results folder.

    Attributes:
        records: point id -> record without `quantized`, for every record that fits the frame.
        unread: the other records.
        frame: the long frame of `records`.
    """

    folder: Path
    records: dict[str, dict[str, Any]]
    unread: tuple[Unread, ...]
    frame: pd.DataFrame
    studies: tuple[Study, ...]

    def full(self, points: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Records with `quantized`, in the given order. Missing records are skipped."""
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


def point_rows(frame: pd.DataFrame) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every point of a frame, float baselines included: its fields as texts, and its rows by metric as named tuples."""
    keys = ["point_id", "status", *FIELDS, "seed"]
    texts = zip(*(labels(frame[name]) for name in keys), strict=True)
    found: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for key, row in zip(texts, frame.itertuples(index=False), strict=True):
        found[key][row.metric] = row
    return [(dict(zip(keys, key, strict=True)), rows) for key, rows in found.items()]


def _why_not(record: dict[str, Any]) -> str | None:
    """The reason why a record of another schema cannot stand beside current ones. None if it can."""
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
