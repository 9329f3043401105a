"""Figures of a metric against bytes and against speed, with the points that no other beats on both axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sqbench.errors import UserError
from sqbench.records.fields import SERIES, point_fields
from sqbench.reporting.candidates import name_of
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.html.figures import bars, intervals, told, value_axis
from sqbench.reporting.html.results import Results
from sqbench.reporting.html.text import in_figure
from sqbench.reporting.looks import GREY, colour, shape
from sqbench.reporting.series import apart, front, logarithmic, shown_cells, sized
from sqbench.reporting.studies import Study
from sqbench.reporting.timings import WORKLOADS, Timing, speeds_of, timings


def against_bytes(study: Study) -> tuple[go.Figure, str]:
    """The study's metric against the bytes of the weights."""
    grid, cells = sized(study.frame, study.metric.name)
    return _front(grid, cells, "weights as stored (MB)"), f"Rings: no other point is smaller and better. {intervals(grid)}"


def against_speed(results: Results, study: Study) -> tuple[go.Figure, str]:
    """The study's metric against the speed of the formats, as a multiple of the float model's. eval=latency measures speeds.

    Raises:
        UserError: no format was timed.
    """
    if study.metric.speed:
        raise UserError(f"{study.metric.name} is itself a speed; points with another evaluation have the other axis")
    times = timings(results.frame, study, None)
    timed = {name for same in times.values() for one in same for name in one.speeds}
    if not timed:
        raise UserError(
            "No point of this model measured a speed. The same line with eval=latency does:"
            " python -m sqbench.run -m method=... bits=... eval=latency backend=int"
        )
    workload = next(name for name in WORKLOADS if name in timed)
    grid = lay_out(study.frame, SERIES, (), study.metric.name)
    cells = shown_cells(grid).dropna(subset=["value"])
    found = [_speed(results, times, workload, cell) for cell in cells.itertuples(index=False)]
    cells = cells.assign(size=[speed for speed, _ in found], how=[how for _, how in found])
    cells = cells.dropna(subset=["size"]).reset_index(drop=True)
    best = front([-speed for speed in cells["size"]], cells["value"].tolist(), lower=study.metric.lower)
    labelled = ["float" if cell.method == "fp" else f"{cell.method} {cell.bits}" for cell in cells.itertuples(index=False)]
    cells = cells.assign(label=labelled, front=cells.index.isin(best))
    on = " or ".join(dict.fromkeys(how for how in cells["how"] if how))
    told = f"Rings: no other point is faster and better. Speeds are those of {WORKLOADS[workload]}, of the same format, {on}."
    return _front(grid, cells, f"times as fast as float ({WORKLOADS[workload]})"), f"{told} {intervals(grid)}"


def _speed(results: Results, times: Mapping[tuple[str, ...], Sequence[Timing]], workload: str, cell: Any) -> tuple[float, str]:
    """The speed of a cell as a multiple of the float model's, and what it was measured on. NaN if unknown."""
    if cell.method == "fp" and math.isnan(cell.delta):
        return 1.0, ""
    speeds, how = speeds_of(times, point_fields(results.records[cell.ids[0]]))
    return speeds.get(workload, math.nan), how.partition(", timed with")[0]


def _front(grid: Grid, cells: pd.DataFrame, axis: str) -> go.Figure:
    figure, metric = go.Figure(), grid.metric
    cells = cells.assign(apart=apart(cells, [name for name in grid.added if name in cells]))
    best = cells[cells["front"]].sort_values("size")
    figure.add_scatter(
        x=best["size"],
        y=best["value"],
        mode="lines+markers+text",
        text=["float" if row.method == "fp" else in_figure(f"{name_of(row)} {row.bits}") for row in best.itertuples()],
        textposition=["top right"] * (len(best) - 1) + ["top left"],  # the last one is at the right end of the axis
        line={"color": GREY, "shape": "hv", "width": 1.5},
        marker={"symbol": "circle-open", "size": 18, "color": GREY},
        name="none is better on both axes",
        hoverinfo="skip",
    )
    for label, rows in cells.groupby("label", sort=False):
        method, bits = rows["method"].iloc[0], rows["bits"].iloc[0]
        named = [f"{name_of(row)} {row.bits}: {told(row.value, row.low, row.high, metric)}" for row in rows.itertuples()]
        figure.add_scatter(
            x=rows["size"],
            y=rows["value"],
            error_y=bars(rows, colour(method)),
            mode="markers",
            marker={"symbol": shape(bits).symbol, "size": 10, "color": colour(method)},
            name=in_figure(label),
            customdata=[in_figure(text) for text in named],
            hovertemplate="%{customdata}<br>%{x:.4g}<extra></extra>",
        )
    figure.update_xaxes(title_text=axis, type="log" if logarithmic(cells["size"].tolist()) else "linear")
    value_axis(figure, metric, cells["value"].tolist())
    return figure
