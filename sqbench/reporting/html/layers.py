"""The data of heat maps and layer tables: every layer of every point, as columns of numbers. Equal columns appear once."""

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from sqbench.records.fields import SIDES
from sqbench.records.record import Record
from sqbench.reporting.html.results import Results, point_rows
from sqbench.reporting.html.text import clean
from sqbench.reporting.studies import KEYS

BUDGET = 3_000_000  # bytes of the page that layers may take
# Field of a layer in the record -> its title, its unit, and whether more is better (None: neither).
FIELDS: dict[str, tuple[str, str, bool | None]] = {
    "input_sqnr_db": ("input SQNR", "dB", True),
    "weight_sqnr_db": ("weight SQNR", "dB", True),
    "ratio": ("outlier ratio of the input", "largest / median channel", False),
    "alpha": ("chosen alpha", "", None),
    "absmax": ("largest |input|", "", None),
    "kurtosis": ("kurtosis of the input", "", None),
    "range_used": ("share of the range used", "", None),
}
_TELLING = tuple(name for name in SIDES if name not in (*KEYS, "seed"))  # in a row's label if rows differ in it
_DECIBELS = ("input_sqnr_db", "weight_sqnr_db")


def layers(results: Results) -> dict[str, Any]:
    """The layers of all points as plain data.

    `columns` holds the values. `points` has the label and study of each point, and the place in `columns` of its `layer`, `format`
    and each field. If the columns would take more than `BUDGET` bytes, some points are left out at random. `left` is their number.
    """
    named: dict[str, tuple[str, str]] = {}
    for study in results.studies:
        points = [fields for fields, _ in point_rows(study.frame) if fields["point_id"] and fields["method"] != "fp"]
        telling = [name for name in _TELLING if len({fields[name] for fields in points}) > 1]
        named |= {fields["point_id"]: (_label(fields, telling), study.label) for fields in points if fields["status"] != "failed"}
    drawn = random.Random(0).sample(sorted(named), len(named))
    columns: dict[str, int] = {}  # JSON of a column -> its place
    places: dict[str, dict[str, int]] = {}
    spent, left = 0, 0
    for record in results.full(drawn):  # a record deleted in the meantime is missing
        texts = dict(_columns(record))
        spent += sum(len(text) for text in set(texts.values()) - columns.keys())
        if spent > BUDGET:
            left = len(drawn) - len(places)
            break
        if texts:
            places[record.point_id] = {name: columns.setdefault(text, len(columns)) for name, text in texts.items()}
    shown = {point: {"label": label, "study": study, **places[point]} for point, (label, study) in named.items() if point in places}
    fields = {name: {"title": title, "unit": unit, "more": more} for name, (title, unit, more) in FIELDS.items()}
    return {"columns": [json.loads(text) for text in columns], "points": clean(shown), "fields": fields, "left": left}


def _columns(record: Record) -> Iterable[tuple[str, str]]:
    done = record.quantized
    entries = done.get("per_layer") or []
    if not entries:
        return
    alphas = {reader: group.get("alpha") for group in done.get("groups", ()) for reader in group.get("readers", ())}
    yield "layer", json.dumps(clean([entry["layer"] for entry in entries]))
    yield "format", json.dumps(clean([entry.get("format", "") for entry in entries]))
    for name in FIELDS:
        values = [alphas.get(entry["layer"]) if name == "alpha" else entry.get(name) for entry in entries]
        if any(value is not None for value in values):
            yield name, json.dumps([_short(name, value) for value in values], separators=(",", ":"))


def _short(name: str, value: Any) -> float | None:
    """The value rounded to the digits that a picture shows."""
    if value is None:
        return None
    return round(float(value), 1) if name in _DECIBELS else float(format(float(value), ".3g"))


def _label(fields: dict[str, str], telling: Sequence[str]) -> str:
    """The label of a point, with the fields in which points of its study differ."""
    alpha = [f"α={fields['alpha']}"] if fields["alpha"] else []
    told = [f"{name}={fields[name]}".removeprefix("variant=") for name in telling if fields[name]]
    seed = [f"seed={fields['seed']}"] if fields["seed"] not in ("", "0") else []
    return " ".join([fields["method"], fields["bits"], *alpha, *told, *seed])
