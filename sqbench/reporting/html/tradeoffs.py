"""What a metric costs: against bytes and against milliseconds, with the points that no other beats on both axes."""

import pandas as pd
import plotly.graph_objects as go

from sqbench.errors import UserError
from sqbench.reporting.candidates import name_of
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.html.figures import bars, intervals, told, value_axis
from sqbench.reporting.html.results import Results
from sqbench.reporting.html.text import in_figure
from sqbench.reporting.looks import GREY, colour, shape
from sqbench.reporting.order import labels, lower_is_better
from sqbench.reporting.series import SERIES, apart, front, logarithmic, shown_cells, sized
from sqbench.reporting.studies import Study
from sqbench.reporting.units import SPEEDS

LATENCY = "latency_ms"


def against_bytes(study: Study) -> tuple[go.Figure, str]:
    """The study's metric against the bytes of the weights."""
    grid, cells = sized(study.frame, study.metric)
    return _front(grid, cells, "weights as stored (MB)"), f"Rings: no other point is smaller and better. {intervals(grid)}"


def against_latency(results: Results, study: Study) -> tuple[go.Figure, str]:
    """The study's metric against the milliseconds that points with eval=latency measured.

    Raises:
        UserError: there are none of the same model, methods, bits and alphas.
    """
    grid, cells = timed(results.frame, study)
    note = "Rings: no other point is faster and better. Milliseconds are those of the eval=latency points of the same method, bits"
    return _front(grid, cells, "latency (ms)"), f"{note} and alpha, on the backend named. {intervals(grid)}"


def timed(frame: pd.DataFrame, study: Study) -> tuple[Grid, pd.DataFrame]:
    """The finished cells of a study with milliseconds (`size`), a `label`, and whether they are on the `front`.

    Raises:
        UserError: no point measured the milliseconds of any.
    """
    if study.metric in SPEEDS:
        raise UserError(f"{study.metric} is itself a speed: points with another evaluation have the other axis")
    grid = lay_out(study.frame, SERIES, (), study.metric)
    speeds = frame[(frame["metric"] == LATENCY) & frame["model"].isin(study.frame["model"])]
    if speeds.empty:
        raise UserError(
            "No point of this model measured latency; the same line with eval=latency does:"
            " python -m sqbench.run -m method=... bits=... eval=latency backend=int"
        )
    times = speeds.assign(**{name: labels(speeds[name]) for name in (*SERIES, "backend")})
    times = times.groupby([*SERIES, "backend"], sort=False)["value"].mean().rename("size").reset_index()
    cells = shown_cells(grid).drop(columns="backend", errors="ignore").merge(times, on=list(SERIES))
    cells = cells.dropna(subset=["value", "size"]).reset_index(drop=True)
    if cells.empty:
        raise UserError("The points that measured latency have other methods, bits or alphas than these")
    best = front(cells["size"].tolist(), cells["value"].tolist(), lower=lower_is_better(study.metric))
    names = [
        "float" if cell.method == "fp" else f"{cell.method} {cell.bits} {cell.backend}" for cell in cells.itertuples(index=False)
    ]
    return grid, cells.assign(label=names, front=cells.index.isin(best))


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
