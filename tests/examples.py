"""Records as `sqbench.run` writes them, made by hand."""

import copy
import json
from pathlib import Path
from typing import Any

from sqbench.comparison import Metric
from sqbench.records import schema1
from sqbench.records.record import Record
from sqbench.storage.files import digest

SCHEMES: dict[str, dict[str, Any]] = {
    "fp": {"name": "fp", "weights": None, "activations": None, "ops": "linear"},
    "w8a8": {
        "name": "w8a8",
        "weights": {"bits": 8, "symmetric": True, "granularity": "channel"},
        "activations": {"bits": 8, "symmetric": True, "granularity": "token", "dynamic": True},
        "ops": "linear",
    },
    "w4a16": {
        "name": "w4a16",
        "weights": {"bits": 4, "symmetric": False, "granularity": "group", "group_size": 64},
        "activations": None,
        "ops": "linear",
    },
}


def build(
    method: str = "smoothquant", bits: str = "w8a8", alpha: Any = None, perplexity: float = 15.1, **changes: Any
) -> dict[str, Any]:
    """A finished record of schema 1. `changes` replace values, nested ones with `__` between keys: `identity__seed=1`.

    Its `point_id` follows from the identity, as in a real record; `status="failed"` empties the results.
    """
    change = perplexity - 14.86
    record: dict[str, Any] = {
        "schema": 1,
        "status": "ok",
        "error": None,
        "identity": {
            "model": {"weights": "a" * 64, "dtype": "float32"},
            "data": {"text": "b" * 64, "window": 512, "windows": 16},
            "method": {"name": method, "alpha": alpha},
            "scheme": copy.deepcopy(SCHEMES[bits]),
            "calibration": {"windows": 32, "seed": 0},
            "eval": {"name": "perplexity", "resamples": 10000, "level": 0.95},
            "seed": 0,
            "backend": "sim",
            "device": "cpu",
            "revision": 1,
        },
        "config": {"model": {"name": "smollm2"}, "data": {"name": "pydoc"}},
        "metrics": {"perplexity": perplexity, "kl_to_fp": 0.0123, "agreement": 0.93, "weight_bytes": 1.0e8},
        "baseline": {"perplexity": 14.86, "weight_bytes": 4.0e8},
        "delta": {"perplexity": {"value": change, "low": change - 0.1, "high": change + 0.1, "level": 0.95, "n": 16}},
        "quantized": {"layers": 210, "coverage": 1.0, "per_layer": [{"layer": "q_proj", "input_sqnr_db": 30.5}]},
        "cost": {"seconds": {"load": 1.0, "total": 12.34}, "peak_rss_bytes": 2.0e9, "weight_bytes": 1.0e8},
        "provenance": {"git": "c" * 40, "time": "2026-11-22T00:00:00+00:00", "sweep": "demo"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = record
        for name in parents:
            target = target[name]
        target[last] = value
    if record["status"] == "failed":
        record |= {"metrics": {}, "baseline": {}, "delta": {}, "quantized": {}}
        record["error"] = record["error"] or {"type": "ValueError", "message": "no range", "traceback": "..."}
    record.setdefault("point_id", digest(record["identity"])[:12])
    return record


def metric(name: str) -> Metric:
    """The metric of this name, as a record of schema 1 declares it."""
    return Metric.of(name, schema1.declared(name))


def made(*arguments: Any, **changes: Any) -> Record:
    """The record of `build`, as a store reads it."""
    return Record.from_json(build(*arguments, **changes))


def write(results_dir: Path, *records: dict[str, Any] | Record) -> None:
    """Put records where a run leaves them, sealed as the store does it."""
    for given in records:
        record = given.to_json() if isinstance(given, Record) else given
        path = results_dir / "runs" / record["point_id"] / "record.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**record, "checksum": digest(record)}), encoding="utf-8")
