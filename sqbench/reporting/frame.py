"""One tidy long frame from records. Pure steps: nothing is read from or written to disk."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from sqbench.comparison import Metric, agreed, holm, main_metric, stderr_name
from sqbench.config import size_of
from sqbench.records.changes import flat
from sqbench.records.fields import CELLS, float_basis, named, point_fields
from sqbench.records.fields import COLUMNS as FIELDS
from sqbench.records.record import Record
from sqbench.reporting.order import as_float, in_order
from sqbench.storage.files import canonical_json

CHANGE = "delta_"  # before the name of a metric: its change against the float model
DECLARED = "declared"  # the column with the `Metric` of a row; no file holds it
_SEEDS = ("seed", "calibration.seed")
_TEST = ("p", "detectable", "gained", "lost", "flip_rate", "test")  # of a change; see sqbench.comparison.Difference
_FLOATS = ("value", "stderr", "float", "low", "high", "level", "p", "p_holm", "detectable", "flip_rate")
_INTEGERS = (*named(lambda field: field.integer), "n", "gained", "lost")
COLUMNS = (
    *FIELDS,
    *("metric", "value", "stderr", "float", "low", "high", "level", "n", "p", "p_holm", *_TEST[1:], "error", DECLARED),
)


@dataclass(frozen=True)
class _Line:
    """A record as rows of the frame. `counts` is the number of examples by metric, where a change would tell it."""

    record: Record
    counts: Mapping[str, int | None]


def results_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per point and metric, sorted, with the columns of `COLUMNS`.

    The change against the float model is a metric of its own, for example `delta_perplexity`. Its interval is in `low` and `high`.
    `p` is the p-value of its test, and `p_holm` corrects it for all changes of that metric in this frame. The float baseline
    appears once, as method `fp`. Its `point_id` is empty unless it was run as a point. A failed point is one row with an empty
    metric. `variant` names the other settings in which points with equal columns differ ("percentile=99.9",
    "calibration.windows=64"). It is empty if there are none.

    Speeds are relative to a float model that took turns with the point. `float` is its speed in those turns. The float baseline is
    then the float model in the dtype that all points were timed beside. A float model in any other dtype is a point.
    """
    lines = _with_baselines(records)
    points = [point_fields(line.record) for line in lines]
    for fields, variant in zip(points, _variants(lines, points), strict=True):
        fields["variant"] = variant
    declared = _declared(line.record for line in lines)
    rows = [row for line, fields in zip(lines, points, strict=True) for row in _rows(line, fields, declared)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds = {name: "Int64" if name in _INTEGERS else "float64" if name in _FLOATS else "str" for name in COLUMNS}
    frame = frame.astype(kinds | {DECLARED: "object"})
    frame["p_holm"] = frame.groupby("metric")["p"].transform(holm)
    order = {name: (*metric.rank[:2], metric.name + " delta" * change) for name, metric, change in _named(frame)}
    order[""] = Metric("").rank
    return in_order(frame, (*CELLS, "seed", "point_id", "metric"), {"metric": order})


def metrics_of(frame: pd.DataFrame, *, compared: bool = False) -> dict[str, Metric]:
    """The metrics of a frame by name, in the order of their rows. A frame of failed points has those that it should have had.

    Args:
        compared: only those with a change against the float model.
    """
    found = {}
    for name, metric, change in _named(frame):
        if name and (change or not compared):
            found[metric.name] = metric
    if not found and not compared:
        found = {metric.name: metric for _, metric, _ in _named(frame)}
    return found


def metric_of(frame: pd.DataFrame, name: str) -> Metric:
    """What the rows of a frame know of a metric. Nothing is known of one that no row has."""
    return metrics_of(frame).get(name) or Metric(name)


def _named(frame: pd.DataFrame) -> Iterator[tuple[str, Metric, bool]]:
    """Name, metric, and whether the name is of a change, once for each name in the column `metric`."""
    rows = frame.drop_duplicates("metric")
    for name, metric in zip(rows["metric"].tolist(), rows[DECLARED].tolist(), strict=True):
        yield name, metric, name.startswith(CHANGE)


def _declared(records: Iterable[Record]) -> dict[str, Metric]:
    """The metrics of all records. Rows of one metric share a declaration, whatever versions their records come from."""
    found: dict[str, dict[Metric, None]] = defaultdict(dict)
    for record in records:
        for name, metric in record.declared.items():
            found[name][metric] = None
    return {name: agreed(metrics) for name, metrics in found.items()}


def _with_baselines(records: Iterable[Record]) -> list[_Line]:
    """The records, and each float baseline exactly once. It is its own record if it was run as a point, else a `baseline`."""
    points: list[_Line] = []
    run: dict[str, _Line] = {}
    implied: dict[str, list[_Line]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.point_id):
        identity, basis = record.identity, float_basis(record)
        key = canonical_json(basis)
        counts = {name: delta.get("n") for name, delta in record.delta.items()}
        of_float = {**basis, "method": {"name": "fp"}, "scheme": {"name": "fp"}}
        floating = replace(record, identity=of_float, delta={})
        if identity["method"]["name"] != "fp":
            points.append(_Line(record, counts))
        elif not record.finished:
            points.append(_Line(floating, counts))
        elif identity["model"] != basis["model"]:
            points.append(_Line(replace(record, identity={**of_float, "model": identity["model"]}), counts))
        else:
            run.setdefault(key, _Line(floating, counts))
        if record.baseline:
            implied[key].append(_Line(replace(floating, point_id="", status="ok", metrics=record.baseline), counts))
    found = {key: _middle(alike) if alike[0].record.identity["eval"].get("beside") else alike[0] for key, alike in implied.items()}
    return [*points, *{**found, **run}.values()]


def _middle(alike: Sequence[_Line]) -> _Line:
    """One float baseline from several timed ones, one beside each point. Its metrics are their medians."""
    every = [line.record.metrics for line in alike]
    names = set.intersection(*(set(metrics) for metrics in every))
    metrics = {name: statistics.median(metrics[name] for metrics in every) for name in every[0] if name in names}
    return replace(alike[0], record=replace(alike[0].record, metrics=metrics))


def _variants(lines: Sequence[_Line], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each point, the settings in which it differs from points with equal columns. Seeds do not count."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, fields in enumerate(points):
        alike[tuple(fields.get(name) for name in CELLS)].append(index)
    variants = [""] * len(points)
    for members in alike.values():
        identities = [lines[index].record.identity for index in members]
        parts = [part for part in set().union(*identities) if len({canonical_json(one.get(part)) for one in identities}) > 1]
        settings = [dict(flat({part: one.get(part) for part in parts})) for one in identities]
        names = sorted(set().union(*settings) - set(_SEEDS))
        telling = [name for name in names if len({one.get(name) for one in settings}) > 1]
        for index, one in zip(members, settings, strict=True):
            variants[index] = ", ".join(f"{name.removeprefix('method.')}={one.get(name, 'null')}" for name in telling)
    return variants


def _rows(line: _Line, fields: Mapping[str, Any], declared: Mapping[str, Metric]) -> Iterator[dict[str, Any]]:
    record = line.record
    if not record.finished:
        yield {**fields, "metric": "", "error": record.reason, DECLARED: main_metric(record.declared.values())}
        return
    data, repeated = record.identity["data"], record.identity["eval"].get("repetitions")
    errors = {name: stderr_name(name) for name in record.metrics}
    for name in record.metrics.keys() - set(errors.values()):
        metric = declared.get(name) or Metric(name)
        count = line.counts.get(name, None if metric.part else repeated or size_of(data))
        yield {
            **fields,
            "metric": name,
            "value": as_float(record.metrics[name]),
            "stderr": as_float(record.metrics.get(errors[name])),
            "n": None if metric.exact else count,
            DECLARED: metric,
        }
    timed = record.baseline if record.identity["eval"].get("beside") else {}
    for name, delta in record.delta.items():
        known = {key: delta.get(key) for key in ("value", "low", "high", "level", "n", *_TEST)}
        known["float"] = timed.get(name)
        yield {**fields, "metric": f"{CHANGE}{name}", **known, DECLARED: declared.get(name) or Metric(name)}
