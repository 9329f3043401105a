"""One metric of the long frame laid out in the cells of a table."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sqbench.comparison import Metric
from sqbench.records.fields import CELLS, GROUPABLE
from sqbench.reporting.frame import CHANGE, metric_of
from sqbench.reporting.order import in_order, labels, rank
from sqbench.reporting.selection import check_names

_TESTED = ("low", "high", "level", "p", "detectable")  # of a change against the float model


@dataclass(frozen=True)
class Grid:
    """One metric laid out for a table.

    Attributes:
        metric: the metric, as the points declare it.
        rows: the columns of the long frame that make the rows. Those in `added` come last.
        columns: the columns of the long frame that make the columns.
        added: the fields that were added to the rows. Without them, different results would share a cell.
        cells: a row per cell, NaN where unknown. It has the labels of `rows` and `columns`. `value` is the mean over `points`, and
            `seed_std` their standard deviation (NaN for one point). `failed` is the number of further points, which failed. `n`
            is the number of examples behind each value. `delta` is the mean change against the float model, with `low`, `high`,
            `level`, `p` and `detectable`. For several points, `significance.tested` fills these five from samples. For speeds,
            `float` is the mean of the float models that took turns with the points. `significance.tested` fills `p_holm`,
            `unclear`, `untested` and `best`. `ids` are the ids of the points, `errors` the errors of the failed ones.
        context: the fields that are equal in every quantized cell and are neither rows nor columns.
        notes: further sentences of the caption.
    """

    metric: Metric
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    added: tuple[str, ...]
    cells: pd.DataFrame
    context: dict[str, str]
    notes: tuple[str, ...] = ()


def lay_out(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: str) -> Grid:
    """The cells of a table of `metric`, from a long frame (`sqbench.reporting.frame.results_frame`).

    Raises:
        UserError: an unknown or repeated row or column, an unknown metric, or nothing to show.
    """
    check_names(frame, rows, columns, metric)
    values = frame[frame["metric"] == metric]
    failed = frame["status"] == "failed"
    if len(values):  # another evaluation would not give this metric
        failed &= frame["eval"].isin(set(values["eval"]))
    deltas = frame[frame["metric"] == f"{CHANGE}{metric}"]
    shown, deltas = (
        part.assign(**{name: labels(part[name]) for name in GROUPABLE}) for part in (pd.concat([values, frame[failed]]), deltas)
    )
    keys = [*rows, *columns]
    added: list[str] = []
    for name in CELLS:
        if name not in keys and (shown.groupby(keys)[name].nunique() > 1).any():
            added.append(name)
            keys.append(name)
    changes = _by_cell(deltas, keys)
    cells = [dict(zip(keys, key, strict=True)) | _cell(found, changes.get(key, [])) for key, found in _by_cell(shown, keys).items()]
    measured = shown if (shown["method"] == "fp").all() else shown[shown["method"] != "fp"]
    constant = [name for name in CELLS if name not in keys and measured[name].nunique() == 1]
    context = {name: measured[name].iloc[0] for name in constant if measured[name].iloc[0]}
    sides = (*rows, *added)
    return Grid(
        metric_of(frame, metric), sides, tuple(columns), tuple(added), in_order(pd.DataFrame(cells), (*sides, *columns)), context
    )


def wide(grid: Grid, text: Callable[[Any], str]) -> pd.DataFrame:
    """The grid as a frame of texts, in order. `text` turns a cell (a named tuple of `grid.cells`) into text. `--` is no cell."""
    texts: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for cell in grid.cells.itertuples(index=False):
        side, top = (tuple(getattr(cell, name) for name in names) for names in (grid.rows, grid.columns))
        texts[side, top] = text(cell)
    sides = list(dict.fromkeys(side for side, _ in texts))  # cells come sorted by rows
    tops = sorted({top for _, top in texts}, key=lambda top: [rank(*pair) for pair in zip(grid.columns, top, strict=True)])
    header = _index(tops, grid.columns) if grid.columns else pd.Index([grid.metric.name])
    body = [[texts.get((side, top), "--") for top in tops] for side in sides]
    return pd.DataFrame(body, index=_index(sides, grid.rows), columns=header, dtype="str")


def _by_cell(frame: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, ...], list[Any]]:
    """The rows of each cell as named tuples, ordered by the labels of the cells. A data frame per cell would be slow."""
    numbers = frame[["point_id", "status", "error", "value", "float", *_TESTED, "n"]].astype({"n": "float64"})
    found: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for key, row in zip(zip(*(frame[name].tolist() for name in keys), strict=True), numbers.itertuples(index=False), strict=True):
        found[key].append(row)
    return dict(sorted(found.items()))


def _cell(found: Sequence[Any], changes: Sequence[Any]) -> dict[str, Any]:
    """The numbers of one cell. Failed points are counted in `failed`."""
    done = [row for row in found if row.status != "failed"]
    values = [row.value for row in done]
    counts = {row.n for row in done if not math.isnan(row.n)}
    paired = [row.value for row in changes] if len(changes) == len(done) else []  # a mean over part of the points would mislead
    with np.errstate(invalid="ignore"):  # the spread of infinite values is NaN
        return {
            "value": np.mean(values) if values else math.nan,
            "seed_std": np.std(values, ddof=1) if len(values) > 1 else math.nan,
            "points": len(done),
            "failed": len(found) - len(done),
            "n": counts.pop() if len(counts) == 1 else math.nan,
            "delta": np.mean(paired) if paired else math.nan,
            "float": np.mean([row.float for row in changes]) if paired else math.nan,
            **{name: getattr(changes[0], name) if len(paired) == 1 else math.nan for name in _TESTED},
            "p_holm": math.nan,
            "unclear": False,
            "untested": "",
            "best": False,
            "ids": tuple(row.point_id for row in done),
            "errors": tuple(row.error for row in found if row.status == "failed"),
        }


def _index(keys: Sequence[tuple[str, ...]], names: Sequence[str]) -> pd.Index:
    """Labels of one or several levels."""
    return pd.MultiIndex.from_tuples(keys, names=names) if len(names) > 1 else pd.Index([key for (key,) in keys], name=names[0])
