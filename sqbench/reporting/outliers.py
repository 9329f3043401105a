"""Outliers in the inputs of each layer of a model, from the records of points that moved no scale."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.config import size_of
from sqbench.errors import UserError
from sqbench.records.fields import point_fields
from sqbench.records.record import Record
from sqbench.reporting.tables import markdown_table
from sqbench.storage.files import canonical_json, write_text

OUTLIERS = "outliers"  # its name in `metric=`
# Columns of outliers.csv; sqbench.statistics.outliers defines them.
DIAGNOSTICS = (
    *("absmax", "channel_median", "channel_p90", "channel_p99", "ratio", "kurtosis", "range_used"),
    *("persistence", "chance", "persistence_tokens"),
)
_SHOWN = ("ratio", "kurtosis", "range_used", "persistence", "persistence_tokens", "chance")
_KEYS = ("model", "weights", "data", "calibration")


def outliers_frame(records: Iterable[Record], points: Collection[str]) -> pd.DataFrame:
    """One row per model, weights, data set, calibration draw and layer. `DIAGNOSTICS` are the columns.

    Args:
        records: records with `quantized`, in order of point id, as a store lists them. The first record that has a layer is used.
        points: ids of the chosen points.

    Raises:
        UserError: no chosen point has seen the unscaled inputs of its model.
    """
    seen: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        layers = record.quantized.get("per_layer")
        if record.point_id not in points or not layers or record.quantized.get("groups"):
            continue
        fields, identity = point_fields(record), record.identity
        calibration = identity["calibration"]
        draw = f"{size_of(calibration)}, seed {calibration['seed']}"
        # The fingerprint covers the image size too, so that models of the same name keep their own rows.
        named = {"model": fields["model"], "weights": identity["model"]["weights"][:8], "data": fields["data"], "calibration": draw}
        rows = [{**named, "layer": layer["layer"], **{name: layer.get(name) for name in DIAGNOSTICS}} for layer in layers]
        known = seen.setdefault(canonical_json([named, identity["model"]["dtype"], calibration]), rows)
        known += [
            row for row in rows if row["layer"] not in {other["layer"] for other in known}
        ]  # layers that an earlier point kept in float
    if not seen:
        raise UserError(
            "metric=outliers: no point here has seen its model's inputs unscaled; one with method=minmax does, for example"
            " python -m sqbench.run model=... method=minmax"
        )
    return pd.DataFrame([row for _, rows in sorted(seen.items()) for row in rows])


def write_outliers(frame: pd.DataFrame, folder: Path) -> tuple[str, list[Path]]:
    """Write every layer to `outliers.csv`, and the median and largest over the layers of each model to `outliers.md`.

    Returns:
        The summary as Markdown, and the files.
    """
    groups = frame.groupby(list(_KEYS), sort=True)
    lines = []
    for key, layers in groups:
        top = layers.loc[layers["ratio"].astype(float).idxmax()]
        for name in ("median", "largest"):
            values = layers[list(_SHOWN)].astype(float).agg("median" if name == "median" else "max")
            lines.append([*key, f"{name} of {len(layers)}", *(f"{value:.3g}" for value in values)])
        lines[-1][len(_KEYS)] += f" (ratio: {top['layer']})"
    note = (
        "Of every layer's input over the calibration set. ratio: the largest channel's absmax / the median channel's; range_used:"
        " share of the range that the central 99.9 % of values need; persistence: overlap (Jaccard) of the top 1 % of channels"
        " between examples, and between tokens; chance: what random channels would have. Every layer is in outliers.csv."
    )
    text = markdown_table([*_KEYS, "layers", *_SHOWN], lines, sides=len(_KEYS) + 1) + f"\n\n{note}\n"
    files = {"outliers.csv": frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"), "outliers.md": text}
    for name, content in files.items():
        write_text(folder / name, content)
    return text, [folder / name for name in files]
