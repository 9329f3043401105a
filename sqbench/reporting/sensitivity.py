"""Sensitivity: groups of layers, ranked by the damage of quantizing one group alone."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.comparison import main_metric
from sqbench.errors import UserError
from sqbench.records.fields import point_fields
from sqbench.records.record import Record
from sqbench.reporting.frame import DECLARED
from sqbench.reporting.order import rank
from sqbench.reporting.tables import markdown_table
from sqbench.reporting.units import change_text, number
from sqbench.storage.files import canonical_json, write_text

SENSITIVITY = "sensitivity"  # its name in `metric=`
_RANKS = "kl_to_fp"  # the metric that ranks groups of layers
_STUDY = (
    "model",
    "data",
    "method",
    "bits",
    "alpha",
    "window",
    "windows",
    "images",
    "sentences",
    "seed",
)  # named above each ranking
_NOTE = (
    "Each row is a point that quantized these layers alone. Ranked by kl_to_fp, the mean divergence from the float model in nats;"
    " in brackets the interval of the change. share: of all weights in layers and embeddings."
)


def sensitivity_frame(records: Iterable[Record], points: Collection[str]) -> pd.DataFrame:
    """One row per point that quantized some layers alone. Points that differ only in their layers form a study and are ranked.

    Columns: `study` (a number), the fields that name the study, `rank` (1 is the most damage), `layers`, `kl_to_fp`, `metric`
    with its `change`, `low`, `high` and `level`, `weights` (quantized), `share`, and `declared`, which no file holds. Failed points
    come last, without numbers.

    Args:
        records: records with `quantized`, as a store lists them.
        points: ids of the chosen points.

    Raises:
        UserError: no chosen point quantized some layers alone.
    """
    studies: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        scheme = record.identity["scheme"]
        compared = not record.finished or _RANKS in record.metrics
        if record.point_id in points and "layers" in scheme and compared:
            rest = {**record.identity, "scheme": {**scheme, "layers": None}}
            studies.setdefault(canonical_json(rest), []).append(_row(record))
    if not studies:
        raise UserError(
            "metric=sensitivity: no point here quantized some layers alone; python -m sqbench.run experiment=sensitivity makes some"
        )
    rows = []
    for number_, key in enumerate(sorted(studies), 1):
        ordered = sorted(
            studies[key], key=lambda row: (math.isnan(row["kl_to_fp"]), -row["kl_to_fp"], rank("layers", row["layers"]))
        )
        rows += [{"study": number_, **row, "rank": place} for place, row in enumerate(ordered, 1)]
    columns = (
        *("study", *_STUDY, "rank", "layers", "kl_to_fp", "metric", "change", "low", "high", "level", "weights", "share", DECLARED),
    )
    return pd.DataFrame(rows, columns=list(columns)).astype({"weights": "Int64"})


def _row(record: Record) -> dict[str, Any]:
    fields, done = point_fields(record), record.quantized
    metric = main_metric(map(record.metric, record.delta))
    change = record.delta.get(metric.name, {})
    return {
        **{name: fields[name] for name in (*_STUDY, "layers")},
        "kl_to_fp": float(record.metrics.get(_RANKS, math.nan)),
        "metric": metric.name,
        DECLARED: (record.metric(_RANKS), metric),
        **{name: change.get(key) for name, key in (("change", "value"), ("low", "low"), ("high", "high"), ("level", "level"))},
        "weights": done.get("weights"),
        "share": done.get("coverage"),
    }


def write_sensitivity(frame: pd.DataFrame, folder: Path) -> tuple[str, list[Path]]:
    """Write `sensitivity.csv`, and the ranking of each study to `sensitivity.md`.

    Returns:
        The rankings as Markdown, and the files.
    """
    parts = []
    for _, study in frame.groupby("study"):
        first = study.iloc[0]
        metric = next((name for name in study["metric"] if name), "")
        said = [f"{name} {first[name]}" for name in _STUDY if not pd.isna(first[name]) and first[name] != ""]
        head = ["rank", "layers", "kl_to_fp", f"Δ {metric}".strip(), "weights", "share"]
        parts.append(f"{', '.join(said)}:\n\n" + markdown_table(head, [_cells(row) for _, row in study.iterrows()], sides=2))
    text = "\n\n".join([*parts, _NOTE]) + "\n"
    files = {
        "sensitivity.csv": frame.drop(columns=DECLARED).to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "sensitivity.md": text,
    }
    for name, content in files.items():
        write_text(folder / name, content)
    return text, [folder / name for name in files]


def _cells(row: pd.Series) -> list[str]:
    if math.isnan(row["kl_to_fp"]):
        return [str(row["rank"]), row["layers"], "fail", "--", "--", "--"]
    ranks, metric = row[DECLARED]
    low, high = (math.nan if pd.isna(row[name]) else float(row[name]) for name in ("low", "high"))
    change = "--" if pd.isna(row["change"]) else change_text(float(row["change"]), low, high, metric)
    sizes = [f"{row['weights']:,}", f"{100 * row['share']:.1f} %"]
    return [str(row["rank"]), row["layers"], number(row["kl_to_fp"], ranks, extra=1), change, *sizes]
