"""Tables of points for the terminal: all points of a results folder, and the differences between two points."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from sqbench.comparison import main_metric
from sqbench.records.changes import changes
from sqbench.records.record import Record
from sqbench.reporting.frame import metrics_of
from sqbench.reporting.terminal import as_text
from sqbench.reporting.units import number

_STYLES = {"ok": "green", "failed": "bold red"}


def points_table(frame: pd.DataFrame, records: Mapping[str, Record], outdated: Callable[[Mapping[str, Any]], str | None]) -> Table:
    """The points of a long frame, one per row: id, status, settings, main metric, seconds and notes.

    Args:
        records: records of the points, by id.
        outdated: identity -> what says that other code computed the point. Such points are marked.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("point", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for title in ("model", "data", "method", "bits", "alpha"):
        table.add_column(title, overflow="fold")
    for title in ("result", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for point_id, rows in frame[frame["point_id"].isin(set(records))].groupby("point_id", sort=False):
        first, record = rows.iloc[0], records[str(point_id)]
        table.add_row(
            *(as_text(text) for text in (point_id,)),
            Text(first["status"], style=_STYLES.get(first["status"], "")),
            *(as_text(first[name]) for name in ("model", "data", "method", "bits", "alpha")),
            as_text(_result(rows)),
            as_text(f"{math.nan if record.seconds is None else record.seconds:.0f}"),
            as_text(_note(first, record, outdated(record.identity))),
        )
    return table


def _result(rows: pd.DataFrame) -> str:
    """The main metric and its value: `perplexity 15.10`."""
    own = rows[~rows["metric"].str.startswith("delta_") & (rows["metric"] != "")]
    if own.empty:
        return "--"
    metric = main_metric(metrics_of(own).values())
    return f"{metric.name} {number(own.loc[own['metric'] == metric.name, 'value'].iloc[0], metric)}"


def _note(first: Any, record: Record, outdated: str | None) -> str:
    notes = [str(first[name]) for name in ("layers", "variant") if first[name]]
    notes += [f"seed={first['seed']}"] * int(not pd.isna(first["seed"]) and first["seed"] != 0)
    notes += [f"backend={first['backend']}"] * (first["backend"] not in ("", "sim"))
    notes += [] if outdated is None else [outdated]
    return ", ".join([*notes, *[first["error"]] * isinstance(first["error"], str)])


def diff_table(one: Record, other: Record) -> Table:
    """The differences between two records in identity, versions, hardware and code, then every metric of both."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("", one.point_id, other.point_id):
        table.add_column(as_text(title), overflow="fold")
    origin = ("versions", "hardware", "git")
    sides = [
        {**record.identity, **{name: record.provenance.get(name) for name in origin}, "status": record.status}
        for record in (one, other)
    ]
    for row in changes(*sides):
        table.add_row(*map(as_text, row))
    table.add_section()
    for metric in sorted(one.metrics.keys() | other.metrics.keys()):
        values = [record.metrics.get(metric) for record in (one, other)]
        table.add_row(as_text(metric), *(as_text("--" if value is None else json.dumps(value)) for value in values))
    return table


def changes_table(found: Iterable[tuple[str, str, str]]) -> Table:
    """The settings of a record that its configuration no longer gives, with their values then and now."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("", "then", "now"):
        table.add_column(title, overflow="fold")
    for row in found:
        table.add_row(*map(as_text, row))
    return table
