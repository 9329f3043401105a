"""The comparison table: a row for every point. Each cell has a text and a sort key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqbench.comparison import Metric, main_metric
from sqbench.records.fields import FORMATS, SERIES, SIDES, named
from sqbench.reporting.frame import CHANGE, metrics_of
from sqbench.reporting.html.results import Results, point_rows
from sqbench.reporting.html.text import named_metric
from sqbench.reporting.order import rank
from sqbench.reporting.units import change_text, number

FILTERS = ("model", "method", "bits", "alpha", "status")
# These are columns only if points differ in them. Formats are columns only if one name of `bits` stands for several.
_BEFORE = named(lambda field: field.basis and not field.numeric and field.name != "device")
_AFTER = tuple(name for name in SIDES if name not in _BEFORE)
_NUMBERS = named(lambda field: field.numeric)
_BESIDE = {"kl_to_fp": "KL to float", "agreement": "agreement", "weight_bytes": "weights, MB"}


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and the number that it sorts by. If `order` is None, it sorts by its text."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Row:
    """A point.

    Attributes:
        point: its id. Empty for a float baseline that was not run as a point.
        keys: its values of the fields in `FILTERS`.
    """

    point: str
    keys: dict[str, str]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The comparison table.

    Attributes:
        columns: titles, and whether their cells are numbers.
        shared: the fields that all points have in common, as text.
        choices: the values that each filter offers, in order.
    """

    columns: tuple[tuple[str, bool], ...]
    shared: str
    rows: tuple[Row, ...]
    choices: dict[str, tuple[str, ...]]


def comparison(results: Results) -> Table:
    """All points of a results folder, in the natural order."""
    points = point_rows(results.frame)
    everything = [fields for fields, _ in points]
    measured = [fields for fields in everything if fields["method"] != "fp"] or everything
    telling = [name for name in (*_BEFORE, *_AFTER) if len({fields[name] for fields in measured}) > 1]
    telling += [name for name in FORMATS if _unclear(name, everything)]
    first = [name for name in (*_BEFORE, *SERIES) if name in (*SERIES, *telling)]
    last = [name for name in (*_AFTER, *FORMATS) if name in telling]  # after the result, which must be visible without scrolling
    constant = [name for name in (*_BEFORE, *_AFTER) if name not in telling and measured and measured[0][name]]
    declared, metrics = metrics_of(results.frame), {study.metric.name: study.metric for study in results.studies}
    one = next(iter(metrics.values())) if len(metrics) == 1 else None
    beside = {declared[name]: title for name, title in _BESIDE.items() if name in declared and (one is None or name != one.name)}
    value = [(named_metric(one), True)] if one else [("metric", False), ("value", True)]
    timed = any(not math.isnan(row.float) for _, found in points for row in found.values())
    columns = [
        *((name, name == "alpha") for name in first),
        *value,
        *[("float beside it", True)] * timed,
        ("change against float", True),
        *((name, False) for name in last),
        *((title, True) for title in beside.values()),
        ("seconds", True),
    ]
    headlines = {point: study.metric for study in results.studies for point in study.points}
    rows = tuple(_row(results, fields, found, (first, last), one, tuple(beside), headlines, timed) for fields, found in points)
    choices = {name: _choices(name, [row.keys[name] for row in rows]) for name in FILTERS}
    shared = ", ".join(f"{name} {measured[0][name]}" for name in constant)
    return Table(tuple(columns), shared, rows, choices)


def _row(
    results: Results,
    fields: dict[str, str],
    found: dict[str, Any],
    shown: tuple[Sequence[str], Sequence[str]],
    one: Metric | None,
    beside: Sequence[Metric],
    headlines: dict[str, Metric],
    timed: bool,
) -> Row:
    record = results.records.get(fields["point_id"])
    metric = one or headlines.get(fields["point_id"]) or main_metric(row.declared for row in found.values())
    first, last = ([_field(name, fields[name]) for name in names] for names in shown)
    cells = [*first, *([] if one else [Cell(named_metric(metric))]), _value(found, metric)]
    cells += [*[_float(found, metric)] * timed, _change(found, metric), *last]
    cells += [_value(found, other) for other in beside]
    seconds = None if record is None else record.seconds
    cells.append(Cell("") if seconds is None else Cell(f"{seconds:.1f}", float(seconds)))
    state = "failed" if fields["status"] == "failed" else "done" if fields["point_id"] else "float"
    return Row(fields["point_id"], {**{name: fields[name] for name in FILTERS}, "status": state}, tuple(cells))


def _unclear(name: str, points: Sequence[dict[str, str]]) -> bool:
    """Whether one name of `bits` stands for several formats."""
    formats = {(fields["bits"], fields[name]) for fields in points}
    return len(formats) > len({bits for bits, _ in formats})


def _field(name: str, text: str) -> Cell:
    if name in _NUMBERS:
        kind, place, *_ = rank(name, text)
        return Cell(text, place if text and kind == 1 else None)
    return Cell(text)


def _value(found: dict[str, Any], metric: Metric) -> Cell:
    if metric.name not in found:
        return Cell("")
    value = found[metric.name].value
    return Cell(number(value, metric), value if math.isfinite(value) else None)


def _float(found: dict[str, Any], metric: Metric) -> Cell:
    """The speed of the float model that took turns with the point."""
    change = found.get(f"{CHANGE}{metric.name}")
    return Cell("") if change is None or math.isnan(change.float) else Cell(number(change.float, metric), change.float)


def _change(found: dict[str, Any], metric: Metric) -> Cell:
    change = found.get(f"{CHANGE}{metric.name}")
    return Cell("") if change is None else Cell(change_text(change.value, change.low, change.high, metric), change.value)


def _choices(name: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values), key=lambda value: rank(name, value)))
