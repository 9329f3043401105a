"""A results folder read for the page: its records, one long frame, and the studies of comparable numbers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.records.fields import CELLS
from sqbench.records.record import Record, UnknownSchema
from sqbench.records.store import Store
from sqbench.reporting.frame import results_frame
from sqbench.reporting.order import labels
from sqbench.reporting.studies import Study, studies


@dataclass(frozen=True)
class Unread:
    """A record of a schema that this version cannot read, and the reason."""

    point_id: str
    schema: str
    status: str
    told: str


@dataclass(frozen=True)
class Results:
    """A results folder.

    Attributes:
        records: point id -> record without `quantized`, for every record of a known schema.
        unread: the other records.
        frame: the long frame of `records`.
    """

    folder: Path
    records: dict[str, Record]
    unread: tuple[Unread, ...]
    frame: pd.DataFrame
    studies: tuple[Study, ...]

    def full(self, points: Sequence[str]) -> Iterable[Record]:
        """Records with `quantized`, in the given order. Missing records are skipped."""
        store = Store(self.folder)
        return (record for point in points if (record := store.read(point)) is not None)


def read(folder: Path) -> Results:
    """Read a results folder that exists."""
    refused: list[UnknownSchema] = []
    records = {record.point_id: record for record in Store(folder).records(brief=True, refused=refused.append)}
    frame = results_frame(records.values())
    return Results(folder, records, tuple(map(_unread, refused)), frame, tuple(studies(frame)))


def point_rows(frame: pd.DataFrame) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every point of a frame, float baselines included: its fields as texts, and its rows by metric as named tuples."""
    keys = ["point_id", "status", *CELLS, "seed"]
    texts = zip(*(labels(frame[name]) for name in keys), strict=True)
    found: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for key, row in zip(texts, frame.itertuples(index=False), strict=True):
        found[key][row.metric] = row
    return [(dict(zip(keys, key, strict=True)), rows) for key, rows in found.items()]


def _unread(reason: UnknownSchema) -> Unread:
    name, schema, status = (str(reason.content.get(key, "none")) for key in ("point_id", "schema", "status"))
    return Unread(name, schema, status, str(reason))
