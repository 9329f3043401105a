"""The content of a tracked run, from its record: name, tags, numbers, tables and pictures. Nothing here knows a tracker."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.config import label_of
from sqbench.records.fields import called
from sqbench.records.record import Record
from sqbench.storage.files import digest


@dataclass(frozen=True)
class Picture:
    """A picture on disk, and the caption below it."""

    path: Path
    caption: str


def name_of(record: Record) -> str:
    """The name of a run: model, method, bits, and unusual settings. Among 200 points of a sweep, no two should look the same."""
    identity = record.identity
    scheme, alpha, evaluation = identity["scheme"], identity["method"].get("alpha"), identity["eval"]["name"]
    layers: list[str] = list(scheme.get("layers") or ())
    parts = (
        (_short(label_of(record.config["model"])), True),
        (called(identity), True),
        (scheme["name"], True),
        (f"a={alpha}", alpha is not None),
        (scheme["ops"], scheme["ops"] != "linear"),
        (layers[0] if len(layers) == 1 else f"{len(layers)} layers", layers),
        (identity["backend"], identity["backend"] != "sim"),
        (evaluation, evaluation not in ("perplexity", "top1")),
        (f"seed {identity['seed']}", identity["seed"] != 0),
    )
    return " ".join(text for text, told in parts if told)


def tags_of(record: Record) -> list[str]:
    """The tags by which runs are filtered."""
    identity, config = record.identity, record.config
    names = (identity["method"]["name"], identity["scheme"]["name"], _short(label_of(config["model"])), config["data"]["name"])
    return [*names, identity["eval"]["name"], identity["backend"], record.status]


def numbers_of(record: Record) -> dict[str, Any]:
    """Status, metrics, differences from the float model, and costs. Nested names have slashes: `delta/perplexity/low`."""
    nested = (item for part in ("delta", "cost") for item in _flat(part, getattr(record, part)))
    return {"status": record.status, **record.metrics, **dict(nested)}


def tables_of(record: Record) -> dict[str, pd.DataFrame]:
    """Tables of the quantized layers, of the groups whose scales moved, and of the widths of mixed precision."""
    quantized = record.quantized
    rows = {
        "per_layer": quantized.get("per_layer"),
        "groups": quantized.get("groups"),
        "allocation": quantized.get("allocation", {}).get("groups"),
    }
    return {name: pd.DataFrame(list(map(_row, found))) for name, found in rows.items() if found}


def spreads_of(tables: dict[str, pd.DataFrame]) -> dict[str, list[float]]:
    """The numbers of a run's layers, column by column, without missing ones."""
    numbers = tables.get("per_layer", pd.DataFrame()).select_dtypes("number")
    return {f"layers/{name}": values for name in numbers if len(values := numbers[name].dropna().tolist())}


def pictures_of(record: Record, results_dir: Path) -> list[Picture]:
    """The distributions that `sqbench.plot` has drawn of this point's weights under this point's method."""
    identity, found = record.identity, []
    wanted = _of(identity["model"]["weights"], identity["method"])
    for path in sorted((results_dir / "plots").glob("distributions-*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if _of(told["weights"], told["method"]) == wanted and (picture := path.with_suffix(".png")).is_file():
                found.append(Picture(picture, told["told"]))
        except (OSError, ValueError, KeyError):
            continue  # of another version, or being written; a picture is no result
    return found


def _of(weights: str, method: dict[str, Any]) -> str:
    return digest([weights, method])


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with a list of names in one cell."""
    return {key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value for key, value in entry.items()}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}/{key}", part)
    else:
        yield name, value


def _short(model: str) -> str:
    """A model's name. For a folder, its last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model
