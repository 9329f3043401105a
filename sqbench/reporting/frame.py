"""Records to one tidy long frame, its order and its filter: pure steps, nothing is read from or written to disk."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from sqbench.comparison import holm
from sqbench.errors import UserError, known
from sqbench.storage import canonical_json

# The natural order of methods and metrics in every table: baseline, then from the simplest to the most elaborate.
METHODS = (
    *("fp", "rtn", "minmax", "ema_minmax", "mean_minmax", "percentile", "mse", "histogram", "entropy"),
    *("smoothquant", "awq", "qat", "qat_lsq"),
)
METRICS = (
    *("perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity", "top1", "top5", "acc", "acc_norm"),
    *("exact_match", "prefix", "kl_to_fp", "agreement", "sqnr_db", "loglik", "repetition"),
    *("tokens_per_s", "decode_tokens_per_s", "images_per_s", "latency_ms", "weight_bytes", "resident_bytes"),
)

# What tells two results apart, in the order of sorting. Results that differ in anything but their seeds never share a cell.
FIELDS = (
    *("method", "bits", "alpha", "model", "head", "data", "eval", "window", "windows", "images"),
    *("beams", "samples", "source", "layers", "ops", "weights", "activations", "backend", "device", "variant"),
)
GROUPABLE = (*FIELDS, "seed", "point_id")  # what rows and columns of a table may be made of
# What a point shares with its float baseline.
_BASIS = ("model", "head", "data", "eval", "window", "windows", "images", "beams", "device")
_SEEDS = ("seed", "calibration.seed")
_EXACT = ("weight_bytes", "resident_bytes", "peak_rss_bytes")  # not an average over examples: no n
_INTEGERS = ("seed", "window", "windows", "images", "beams", "samples", "n", "gained", "lost")
_NUMERIC = ("alpha", *_INTEGERS)
_TEST = ("p", "detectable", "gained", "lost", "flip_rate", "test")  # of a change; see sqbench.comparison.Difference
_FLOATS = ("value", "stderr", "low", "high", "level", "p", "p_holm", "detectable", "flip_rate")
COLUMNS = (
    *("point_id", "status", "model", "head", "data", "eval", "method", "alpha", "bits", "weights", "activations", "ops", "seed"),
    *("layers", "backend", "device", "window", "windows", "images", "beams", "samples", "source", "variant"),
    *("metric", "value", "stderr", "low", "high", "level", "n", "p", "p_holm", *_TEST[1:], "error"),
)
# Fields of which a table holds one value unless they are its rows or columns: the examples, and what is quantized.
_SETS = ("data", "eval", "window", "windows", "images", "ops")
# Parts of the names of metrics where less is better.
_LOWER = ("perplexity", "per_byte", "kl_", "bytes", "latency", "loss", "repetition")


def results_frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per point and metric, sorted, with the columns of `COLUMNS`.

    The change against the float model is a metric of its own, `delta_perplexity` for example, with its interval in `low` and
    `high`, and its test: `p`, and `p_holm` corrected for all changes of that metric in this frame. The float baseline that points
    were compared with is there once as method `fp`, with an empty `point_id` unless it was run as a point. A failed point is one
    row with an empty metric. `variant` names what else of the identity differs between points that are otherwise alike
    ("percentile=99.9", "calibration.windows=64"), and is empty where nothing does.
    """
    points = [(record, point_fields(record)) for record in _with_baselines(records)]
    for fields, variant in zip((fields for _, fields in points), _variants(points), strict=True):
        fields["variant"] = variant
    frame = pd.DataFrame([row for record, fields in points for row in _rows(record, fields)], columns=list(COLUMNS))
    kinds = {name: "Int64" if name in _INTEGERS else "float64" if name in _FLOATS else "str" for name in COLUMNS}
    frame = frame.astype(kinds)
    frame["p_holm"] = frame.groupby("metric")["p"].transform(holm)
    return in_order(frame, (*FIELDS, "seed", "point_id", "metric"))


def point_fields(record: dict[str, Any]) -> dict[str, Any]:
    """The identity of a record as flat columns."""
    identity, scheme = record["identity"], record["identity"]["scheme"]
    dtype = identity["model"].get("dtype", "float")
    alpha = identity["method"].get("alpha")
    weights = scheme.get("weights")
    if "mixed" in identity:  # of several widths, their average
        weights = {**weights, "bits": format(identity["mixed"]["budget"], "g")}
    calibration = identity.get("calibration") or {}
    return {
        "point_id": record["point_id"],
        "status": record["status"],
        "model": record["config"]["model"]["name"],
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
    """What calibrated: `data` (of the evaluation, other examples), `other` text, `random`, `weights`; empty for the float model."""
    if not calibration:
        return ""
    return str(calibration.get("source", "data" if calibration.get("text") in (None, data.get("text")) else "other"))


def describe_format(fields: dict[str, Any] | None) -> str:
    """A format in a few words, as `sqbench.quant.formats.Format` prints it, from a record's plain data.

    >>> describe_format({"bits": 4, "symmetric": False, "granularity": "group", "group_size": 64})
    'int4 asym group 64'
    """
    if fields is None:
        return ""
    words = [f"int{fields['bits']}", "sym" if fields.get("symmetric", True) else "asym", fields.get("granularity", "tensor")]
    if fields.get("group_size") is not None:
        words.append(str(fields["group_size"]))
    if fields.get("dynamic"):
        words.append("dynamic")
    return " ".join(words)


def rank(column: str, label: str) -> tuple[int, float, float, str]:
    """A sort key for a column's text: the field's own order where there is one, else the alphabet.

    Alphas go up and end with `auto`; schemes start with the float model and go from wide to narrow weights, then activations.
    """
    if column in ("method", "metric"):
        order, name = (METHODS, label) if column == "method" else (METRICS, label.removeprefix("delta_"))
        place = order.index(family(name)) if family(name) in order else len(order)
        return (place, float(name != family(name)), 0.0, name if name == label else f"{name} delta")
    if column == "bits":
        widths = re.match(r"w(\d+)a(\d+)", label)
        return (1, -float(widths[1]), -float(widths[2]), label) if widths else (0 if label == "fp" else 2, 0.0, 0.0, label)
    if column == "layers":
        return (2 if label else 0, 0.0, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(6), label))  # 2 before 10
    if column in _NUMERIC and label and label != "auto":
        return (1, _number(label), 0.0, "")
    return (2 if label else 0, 0.0, 0.0, label)


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better: of lm-eval's names too."""
    return any(part in metric for part in _LOWER)


def family(metric: str) -> str:
    """What a metric is called whatever the task: its place in the order, its unit and its decimals go by that.

    >>> family("passive_1/acc"), family("gsm8k/exact_match,strict-match"), family("perplexity")
    ('acc', 'exact_match', 'perplexity')
    """
    return metric.rpartition("/")[2].partition(",")[0]


def main_metric(names: Iterable[str]) -> str:
    """The first of these metrics in the natural order, those of single tasks and sizes last; `perplexity` if there is none."""
    own = [name for name in names if name and not name.startswith("delta_")]
    whole = [name for name in own if "/" not in name and name not in _EXACT]
    return min(whole or own, key=lambda name: rank("metric", name), default=METRICS[0])


def in_order(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by the `rank` of these columns, numbered anew."""
    keys = []
    for name in by:
        texts = labels(frame[name])
        ranks = {text: rank(name, text) for text in set(texts)}  # few, however many rows there are
        keys.append([ranks[text] for text in texts])
    places = list(zip(*keys, strict=True))
    return frame.iloc[sorted(range(len(frame)), key=places.__getitem__)].reset_index(drop=True)


def select(frame: pd.DataFrame, **wanted: Sequence[str] | None) -> pd.DataFrame:
    """The rows whose column holds one of the wanted names; None wants all.

    The float baseline stays wherever a row that was measured against it stays, so that a table keeps its reference.

    Raises:
        UserError: a wanted name is nowhere in the column.
    """
    if all(names is None for names in wanted.values()):
        return frame.reset_index(drop=True)
    keep = pd.Series(True, index=frame.index)
    for column, names in wanted.items():
        present = set(labels(frame[column]))
        for name in names or ():
            if name not in present:
                raise UserError(f"where.{column}={name}: {known(name, present)}")
        if names is not None:
            keep &= pd.Series(labels(frame[column]), index=frame.index).isin(names)
    shared = pd.Series(list(zip(*(labels(frame[name]) for name in _BASIS), strict=True)), index=frame.index, dtype=object)
    keep |= (frame["method"] == "fp") & shared.isin(set(shared[keep]))
    return frame[keep].reset_index(drop=True)


def check_names(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: str) -> None:
    """Raise UserError for a table that cannot be made: no rows, an unknown or repeated name, a metric that no point has."""
    if frame.empty or not rows:
        raise UserError("no result to show" if frame.empty else f"rows=[]: at least one name works; {known('', GROUPABLE)}")
    for key, names in (("rows", rows), ("columns", columns)):
        for name in names:
            if name not in GROUPABLE:
                raise UserError(f"{key}=[{','.join(names)}]: unknown name {name}; {known(name, GROUPABLE)}")
            if [*rows, *columns].count(name) > 1:
                raise UserError(f"{key}=[{','.join(names)}]: {name} stands more than once in rows and columns; once works")
    metrics = set(frame["metric"]) - {""} or METRICS  # if every point failed, any metric of ours makes the table of failures
    if metric not in metrics:
        raise UserError(f"metric={metric}: {known(metric, metrics)}")


def check_examples(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: str) -> None:
    """Raise UserError if a table of a metric would put results over other examples, or of another op set, beside each other.

    Sizes are the same whatever they were evaluated on.
    """
    shown = frame[(frame["metric"] == metric) & (frame["method"] != "fp")]
    for name in _SETS if metric not in _EXACT else ():
        values = sorted(set(labels(shown[name])) - {""}, key=lambda label: rank(name, label))
        if len(values) > 1 and name not in (*rows, *columns):
            differ = "quantize other operations" if name == "ops" else "are over other examples"
            raise UserError(
                f"{name}={','.join(values)}: results that {differ} make no table together; where.{name}={values[0]} works,"
                f" and rows=[{','.join([*rows, name])}]"
            )


def labels(column: pd.Series) -> list[str]:
    """The texts of a column, empty where there is no value."""
    return ["" if missing else str(value) for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)]


def float_basis(record: dict[str, Any]) -> dict[str, Any]:
    """What the float result depends on that a point was compared with: points that share it saw the same examples."""
    identity = record["identity"]
    # The interval's own settings are not among it. Speed is compared with one dtype for all.
    basis = {name: identity.get(name) for name in ("model", "data", "eval", "device")}
    if beside := identity["eval"].get("beside"):
        basis["model"] = {**identity["model"], "dtype": beside}
    basis["eval"] = {key: value for key, value in identity["eval"].items() if key not in ("resamples", "level")}
    return basis


def _with_baselines(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, and each float baseline exactly once: as its own record if it was run as a point, else from a `baseline`."""
    points: list[dict[str, Any]] = []
    run: dict[str, dict[str, Any]] = {}
    implied: dict[str, dict[str, Any]] = {}
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
            implied.setdefault(key, {**record, **as_float, "point_id": "", "status": "ok", "metrics": record["baseline"]})
    return [*points, *{**implied, **run}.values()]


def _variants(points: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """For each point, what tells it from the others whose columns are all the same, seeds apart."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, (_, fields) in enumerate(points):
        alike[tuple(fields.get(name) for name in FIELDS)].append(index)
    variants = [""] * len(points)
    for members in alike.values():
        identities = [points[index][0]["identity"] for index in members]
        parts = [part for part in set().union(*identities) if len({canonical_json(one.get(part)) for one in identities}) > 1]
        settings = [dict(_flat({part: one.get(part) for part in parts})) for one in identities]
        names = sorted(set().union(*settings) - set(_SEEDS))
        telling = [name for name in names if len({one.get(name) for one in settings}) > 1]
        for index, one in zip(members, settings, strict=True):
            variants[index] = ", ".join(f"{name.removeprefix('method.')}={one.get(name, 'null')}" for name in telling)
    return variants


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and short texts."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else key)
    elif value is not None:  # null and absent are the same
        text = value if isinstance(value, str) else canonical_json(value)
        yield name, text if len(text) <= 40 else text[:12]  # a digest is told apart by its beginning


def _rows(record: dict[str, Any], fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if record["status"] == "failed":
        error = record["error"] or {}
        yield {**fields, "metric": "", "error": f"{error.get('type', 'Error')}: {error.get('message', '')}"}
        return
    metrics, deltas, data = record["metrics"], record["delta"], record["identity"]["data"]
    counts = record.get("counts") or {name: delta.get("n") for name, delta in deltas.items()}
    errors = {name: _stderr_name(name) for name in metrics}
    for name in metrics.keys() - set(errors.values()):
        repeated = record["identity"]["eval"].get("repetitions")
        count = counts.get(name, None if "/" in name else repeated or data.get("windows", data.get("images")))
        yield {
            **fields,
            "metric": name,
            "value": _number(metrics[name]),
            "stderr": _number(metrics.get(errors[name])),
            "n": None if name in _EXACT else count,
        }
    for name, delta in deltas.items():
        known = {key: delta.get(key) for key in ("value", "low", "high", "level", "n", *_TEST)}
        yield {**fields, "metric": f"delta_{name}", **known}


def _stderr_name(metric: str) -> str:
    """Where lm-eval puts a metric's standard error: `acc_stderr,none` for `acc,none`."""
    stem, comma, filtered = metric.partition(",")
    return f"{stem}_stderr{comma}{filtered}"


def _number(value: Any) -> float:
    """A float; NaN for what is no number (lm-eval writes "N/A")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
