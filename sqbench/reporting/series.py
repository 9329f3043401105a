"""The numbers behind pictures of records. Pure steps from frames and grids. Nothing is drawn here."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from sqbench.comparison import SIZE
from sqbench.errors import UserError
from sqbench.records.fields import CELLS, SERIES, SIDES, point_fields
from sqbench.records.record import Record
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.order import in_order, labels

MOST_LINES = 14  # a reader cannot follow more
LOG_FROM = 20.0  # an axis is logarithmic from this ratio of largest to smallest value
NOISE = (("input_sqnr_db", "layer input"), ("weight_sqnr_db", "layer weight"))


def logarithmic(values: Sequence[float]) -> bool:
    """Whether values spread so far that their axis is logarithmic."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= LOG_FROM


@dataclass(frozen=True)
class Curve:
    """One line of the alpha picture.

    Attributes:
        label: method, bits, and the settings that separate it from others.
        alphas: numbers as text, or `auto`. Empty for a method without alpha, which has one value.
        values, low, high: in the units of the axis. The ends of an unknown interval are NaN.
    """

    label: str
    method: str
    bits: str
    alphas: tuple[str, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def shown_cells(grid: Grid) -> pd.DataFrame:
    """The finished cells of a table in the units of an axis. `low` and `high` are the ends of the interval of the value.

    The interval is the one of the paired difference from the float model, moved to the value: float value + [low, high].
    """
    unit = grid.metric.scale
    cells = grid.cells[grid.cells["points"] > 0]
    if grid.metric.speed:
        power = -1 if grid.metric.lower else 1  # a time falls with speed
        low, high = [cells["value"] * (cells[name] / cells["delta"]) ** power for name in ("low", "high")][::power]
        return cells.assign(low=low, high=high)
    reference = cells["value"] - cells["delta"]
    ends = {name: (reference + cells[name]) / unit for name in ("low", "high")}
    return cells.assign(value=cells["value"] / unit, **ends)


def curves(grid: Grid) -> tuple[float | None, list[Curve]]:
    """The value of the float model, and a line for each method and bits. The grid has method, bits and alpha as rows.

    Raises:
        UserError: the results are of several models or data sets.
    """
    same_basis(grid)
    cells = shown_cells(grid)
    line = (cells["method"] == "fp") & cells["delta"].isna()  # a float model in another dtype has a change, and is a point
    floats, cells = cells[line], cells[~line]
    found = []
    names = [name for name in grid.rows if name != "alpha"]
    for key, rows in cells.assign(apart=apart(cells, names[2:], names[:2])).groupby(names, sort=False):
        alphas = tuple(alpha for alpha in rows["alpha"] if alpha)
        label = " ".join([*key[:2], *rows["apart"].iloc[:1]]).strip()
        found.append(Curve(label, key[0], key[1], alphas, *(tuple(rows[name]) for name in ("value", "low", "high"))))
    return (float(floats["value"].iloc[0]) if len(floats) else None), found


def apart(cells: pd.DataFrame, names: Sequence[str], by: Sequence[str] = SERIES) -> pd.Series:
    """For each cell, the fields of `names` in which cells with equal `by` differ, as `name=value` texts."""
    told = pd.Series("", index=cells.index, dtype=object)
    for name in names:
        differs = (cells.groupby(list(by))[name].transform("nunique") > 1) & (cells[name] != "")
        told = told.where(~differs, told + f" {name}=" + cells[name].astype(object))
    return told.str.strip()


def same_basis(grid: Grid) -> None:
    """Raise UserError if a grid mixes models or data sets, which no axis can hold together."""
    for name in ("model", "data"):
        if name in grid.added:
            values = sorted(set(grid.cells[name]))
            raise UserError(f"results of {len(values)} {name}s ({', '.join(values)}) in one picture; use where.{name}={values[0]}")


def front(sizes: Sequence[float], values: Sequence[float], *, lower: bool | None) -> list[int]:
    """The places of the points on the front, from small to large. No other point is as small or smaller, and better.

    Among equal points, the first is on the front. The result is empty if it is unknown which values are better (`lower` is None).
    """
    if lower is None:
        return []
    sign = 1.0 if lower else -1.0
    best, found = math.inf, []
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], sign * values[index])):
        if sign * values[index] < best:
            best = sign * values[index]
            found.append(index)
    return found


def sized(frame: pd.DataFrame, metric: str) -> tuple[Grid, pd.DataFrame]:
    """The grid of a metric, and its finished cells with `size` (weight megabytes), `label` and `front` (whether on the front).

    Raises:
        UserError: no point has the metric and a size.
    """
    grid = lay_out(frame, SERIES, (), metric)
    if "data" in grid.added:
        same_basis(grid)
    if metric == SIZE.name or SIZE.name not in set(frame["metric"]):
        raise UserError(f"metric={metric}: a picture against weight bytes needs points that have both")
    keys = list(grid.rows)
    sizes = lay_out(frame, keys, (), SIZE.name).cells
    sizes = sizes.assign(size=sizes["value"] / SIZE.scale)[[*keys, "size"]]
    cells = shown_cells(grid).merge(sizes, on=keys).dropna(subset=["value", "size"]).reset_index(drop=True)
    if cells.empty:
        raise UserError(f"metric={metric}: no finished point has it and a size")
    best = front(cells["size"].tolist(), cells["value"].tolist(), lower=grid.metric.lower)
    named = [name for name in keys if name not in ("alpha", "weights", "activations")]
    texts = cells[named].agg(lambda row: " ".join(filter(None, row)), axis=1).str.replace(r"^fp fp", "float", regex=True)
    return grid, cells.assign(label=texts, front=cells.index.isin(best))


def layers_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per point and layer.

    The columns are `label`, `method` and `bits` of the point, `index`, `layer`, `input_sqnr_db` and `weight_sqnr_db` (NaN if float)
    and `model`.

    Raises:
        UserError: there is nothing to show, there are more than `MOST_LINES` points, or several models.
    """
    points = [(record, point_fields(record)) for record in records if record.quantized.get("per_layer")]
    if not points:
        raise UserError("layers: no finished point has quantized layers; python -m sqbench.run method=rtn makes one")
    models = sorted({fields["model"] for _, fields in points})
    if len(models) > 1:
        raise UserError(f"layers: {len(models)} models ({', '.join(models)}) in one picture; use where.model={models[0]}")
    named = in_order(pd.DataFrame([{**fields, "at": at} for at, (_, fields) in enumerate(points)]), (*SERIES, "seed"))
    texts = named.assign(**{name: labels(named[name]) for name in (*CELLS, "seed") if name in named})
    label = texts["method"] + " " + texts["bits"] + texts["alpha"].map(lambda alpha: f" α={alpha}" if alpha else "")
    for name in [name for name in SIDES if name in texts]:
        telling = texts.groupby(label)[name].transform("nunique") > 1
        label = label.where(~telling, label + f" {name}=" + texts[name])
    label = label.where(~label.duplicated(keep=False), label + " " + texts["point_id"])
    if len(label) > MOST_LINES:
        raise UserError(f"layers: {len(label)} lines, {MOST_LINES} can be told apart; where.method=..., where.bits=... choose")
    rows = [
        {
            "label": name,
            "method": named["method"].iloc[row],
            "bits": named["bits"].iloc[row],
            "index": index,
            "layer": entry["layer"],
            **{noise: entry.get(noise, math.nan) for noise, _ in NOISE},
        }
        for row, (name, at) in enumerate(zip(label, named["at"], strict=True))
        for index, entry in enumerate(points[at][0].quantized["per_layer"])
    ]
    return pd.DataFrame(rows).assign(model=models[0])
