"""One tidy long frame from records. Pure steps: nothing is read from or written to disk."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from sqbench.comparison import holm, stderr_name
from sqbench.config import label_of
from sqbench.quant.formats import Format
from sqbench.records.changes import flat
from sqbench.reporting.order import EXACT, FIELDS, INTEGERS, as_float, in_order
from sqbench.storage import canonical_json

_SEEDS = ("seed", "calibration.seed")
_TEST = ("p", "detectable", "gained", "lost", "flip_rate", "test")  # of a change; see sqbench.comparison.Difference
_FLOATS = ("value", "stderr", "float", "low", "high", "level", "p", "p_holm", "detectable", "flip_rate")
COLUMNS = (
    *("point_id", "status", "model", "head", "data", "eval", "method", "alpha", "bits", "weights", "activations", "ops", "seed"),
    *("layers", "backend", "device", "window", "windows", "images", "beams", "samples", "source", "variant"),
    *("metric", "value", "stderr", "float", "low", "high", "level", "n", "p", "p_holm", *_TEST[1:], "error"),
)


def results_frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per point and metric, sorted, with the columns of `COLUMNS`.

    The change against the float model is a metric of its own, for example `delta_perplexity`. Its interval is in `low` and `high`.
    `p` is the p-value of its test, and `p_holm` corrects it for all changes of that metric in this frame. The float baseline
    appears once, as method `fp`. Its `point_id` is empty unless it was run as a point. A failed point is one row with an empty
    metric. `variant` names the other settings in which points with equal columns differ ("percentile=99.9",
    "calibration.windows=64"). It is empty if there are none.

    Speeds are relative to a float model that took turns with the point. `float` is its speed in those turns. The float baseline is
    then the float model in the dtype that all points were timed beside. A float model in any other dtype is a point.
    """
    points = [(record, point_fields(record)) for record in _with_baselines(records)]
    for fields, variant in zip((fields for _, fields in points), _variants(points), strict=True):
        fields["variant"] = variant
    frame = pd.DataFrame([row for record, fields in points for row in _rows(record, fields)], columns=list(COLUMNS))
    kinds = {name: "Int64" if name in INTEGERS else "float64" if name in _FLOATS else "str" for name in COLUMNS}
    frame = frame.astype(kinds)
    frame["p_holm"] = frame.groupby("metric")["p"].transform(holm)
    return in_order(frame, (*FIELDS, "seed", "point_id", "metric"))


def point_fields(record: dict[str, Any]) -> dict[str, Any]:
    """The identity of a record as flat columns."""
    identity, scheme = record["identity"], record["identity"]["scheme"]
    dtype = identity["model"].get("dtype", "float")
    alpha = identity["method"].get("alpha")
    weights = scheme.get("weights")
    if "mixed" in identity:  # several widths: their average
        weights = {**weights, "bits": format(identity["mixed"]["budget"], "g")}
    calibration = identity.get("calibration") or {}
    return {
        "point_id": record["point_id"],
        "status": record["status"],
        "model": label_of(record["config"]["model"]),
        "data": record["config"]["data"]["name"],
        "eval": identity["eval"].get("name", ""),
        "method": identity["method"]["name"],
        "alpha": "" if alpha is None else alpha if isinstance(alpha, str) else format(alpha, ".10g"),
        "bits": scheme["name"],
        "weights": describe_format(weights) or dtype,
        "activations": describe_format(scheme.get("activations")) or dtype,
        "layers": ", ".join(scheme.get("layers", ())),
        "ops": scheme.get("ops", ""),
        "seed": identity.get("seed"),
        "backend": identity.get("backend", ""),
        "device": identity.get("device", ""),
        "head": identity["model"].get("head", {}).get("name", ""),
        "window": identity["data"].get("window"),
        "windows": identity["data"].get("windows"),
        "images": identity["data"].get("images"),
        "beams": identity["eval"].get("beams"),
        "samples": calibration.get("windows", calibration.get("images")),
        "source": _source(calibration, identity["data"]),
    }


def _source(calibration: dict[str, Any], data: dict[str, Any]) -> str:
    """The source of the calibration: `data`, `other`, `random` or `weights`. Empty for the float model.

    `data` are other examples of the evaluation's data set. `other` is another text.
    """
    if not calibration:
        return ""
    return str(calibration.get("source", "data" if calibration.get("text") in (None, data.get("text")) else "other"))


def describe_format(fields: dict[str, Any] | None) -> str:
    """A format in a few words, from the plain data of a record. The words are those of `sqbench.quant.formats.Format`.

    >>> describe_format({"bits": 4, "symmetric": False, "granularity": "group", "group_size": 64})
    'int4 asym group 64'
    """
    if fields is None:
        return ""
    return str(Format.from_dict(fields))


def float_basis(record: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the float result of a point. Points with equal settings saw the same examples."""
    identity = record["identity"]
    # The settings of the interval are left out. Speed is compared with one dtype for all.
    basis = {name: identity.get(name) for name in ("model", "data", "eval", "device")}
    if beside := identity["eval"].get("beside"):
        basis["model"] = {**identity["model"], "dtype": beside}
    basis["eval"] = {key: value for key, value in identity["eval"].items() if key not in ("resamples", "level")}
    return basis


def _with_baselines(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, and each float baseline exactly once. It is its own record if it was run as a point, else a `baseline`."""
    points: list[dict[str, Any]] = []
    run: dict[str, dict[str, Any]] = {}
    implied: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["point_id"]):
        identity, basis = record["identity"], float_basis(record)
        key = canonical_json(basis)
        as_float = {"identity": {**basis, "method": {"name": "fp"}, "scheme": {"name": "fp"}}, "delta": {}}
        as_float["counts"] = {name: delta.get("n") for name, delta in record["delta"].items()}
        if identity["method"]["name"] != "fp":
            points.append(record)
        elif record["status"] == "failed":
            points.append({**record, **as_float})
        elif identity["model"] != basis["model"]:
            points.append({**record, "identity": {**as_float["identity"], "model": identity["model"]}})
        else:
            run.setdefault(key, {**record, **as_float})
        if record["baseline"]:
            implied[key].append({**record, **as_float, "point_id": "", "status": "ok", "metrics": record["baseline"]})
    found = {key: _middle(alike) if alike[0]["identity"]["eval"].get("beside") else alike[0] for key, alike in implied.items()}
    return [*points, *{**found, **run}.values()]


def _middle(alike: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One float baseline from several timed ones, one beside each point. Its metrics are their medians."""
    names = set.intersection(*(set(record["metrics"]) for record in alike))
    metrics = {
        name: statistics.median(record["metrics"][name] for record in alike) for name in alike[0]["metrics"] if name in names
    }
    return {**alike[0], "metrics": metrics}


def _variants(points: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """For each point, the settings in which it differs from points with equal columns. Seeds do not count."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, (_, fields) in enumerate(points):
        alike[tuple(fields.get(name) for name in FIELDS)].append(index)
    variants = [""] * len(points)
    for members in alike.values():
        identities = [points[index][0]["identity"] for index in members]
        parts = [part for part in set().union(*identities) if len({canonical_json(one.get(part)) for one in identities}) > 1]
        settings = [dict(flat({part: one.get(part) for part in parts})) for one in identities]
        names = sorted(set().union(*settings) - set(_SEEDS))
        telling = [name for name in names if len({one.get(name) for one in settings}) > 1]
        for index, one in zip(members, settings, strict=True):
            variants[index] = ", ".join(f"{name.removeprefix('method.')}={one.get(name, 'null')}" for name in telling)
    return variants


def _rows(record: dict[str, Any], fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if record["status"] == "failed":
        error = record["error"] or {}
        yield {**fields, "metric": "", "error": f"{error.get('type', 'Error')}: {error.get('message', '')}"}
        return
    metrics, deltas, data = record["metrics"], record["delta"], record["identity"]["data"]
    counts = record.get("counts") or {name: delta.get("n") for name, delta in deltas.items()}
    errors = {name: stderr_name(name) for name in metrics}
    for name in metrics.keys() - set(errors.values()):
        repeated = record["identity"]["eval"].get("repetitions")
        count = counts.get(name, None if "/" in name else repeated or data.get("windows", data.get("images")))
        yield {
            **fields,
            "metric": name,
            "value": as_float(metrics[name]),
            "stderr": as_float(metrics.get(errors[name])),
            "n": None if name in EXACT else count,
        }
    timed = record["baseline"] if record["identity"]["eval"].get("beside") else {}
    for name, delta in deltas.items():
        known = {key: delta.get(key) for key in ("value", "low", "high", "level", "n", *_TEST)}
        known["float"] = timed.get(name)
        yield {**fields, "metric": f"delta_{name}", **known}
