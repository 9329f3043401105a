"""Figures of a metric against alpha and against formats."""

import math

import pandas as pd
import plotly.graph_objects as go

from sqbench.comparison import Metric
from sqbench.errors import UserError
from sqbench.records.fields import SERIES
from sqbench.reporting import looks
from sqbench.reporting.candidates import name_of
from sqbench.reporting.grid import lay_out
from sqbench.reporting.html.figures import bars, intervals, reference, told, value_axis
from sqbench.reporting.html.text import in_figure
from sqbench.reporting.order import in_order, unsure
from sqbench.reporting.series import Curve, apart, curves, shown_cells
from sqbench.reporting.studies import Study


def against_alpha(study: Study, metric: Metric) -> tuple[go.Figure, str]:
    """A line with a band for each method and bits. A method without alpha is level.

    Raises:
        UserError: no point has an alpha.
    """
    grid = lay_out(study.frame, SERIES, (), metric.name)
    base, found = curves(grid)
    if not any(curve.alphas for curve in found):
        raise UserError(
            "No finished point has an alpha: python -m sqbench.run -m method=smoothquant,awq alpha=0.3,0.5,0.8 makes some"
        )
    numbers = sorted({float(alpha) for curve in found for alpha in curve.alphas if alpha != "auto"})
    some_auto = any("auto" in curve.alphas for curve in found)
    left, right = (numbers[0], numbers[-1]) if numbers else (0.0, 0.0)
    auto = right + 0.15 * ((right - left) or 1.0)
    figure = go.Figure()
    for curve in found:
        places = [auto if alpha == "auto" else float(alpha) for alpha in curve.alphas]
        _curve(figure, curve, places or [left, auto if some_auto else right], metric)
    reference(figure, base)
    ticks = {"tickvals": [*numbers, auto], "ticktext": [*(f"{value:g}" for value in numbers), "auto"]} if some_auto else {}
    figure.update_xaxes(title_text="α", **ticks)
    value_axis(figure, metric, [value for curve in found for value in curve.values])
    level = " A level line is a method without alpha." * any(not curve.alphas for curve in found)
    return figure, f"{intervals(grid)}{level}"


def _curve(figure: go.Figure, curve: Curve, places: list[float], metric: Metric) -> None:
    """Add a line, named at its right end. The point of `auto` stands alone, because `auto` is not a number."""
    colour, flat = looks.colour(curve.method), not curve.alphas
    rows = pd.DataFrame({"value": curve.values, "low": curve.low, "high": curve.high})
    rows = pd.concat([rows, rows]) if flat else rows
    rows = rows.assign(at=places, alpha=["any"] * len(rows) if flat else list(curve.alphas))
    shape, alone = looks.shape(curve.bits), rows["alpha"] == "auto"
    band = rows[~alone].dropna(subset=["low"])
    wide = band["at"].nunique() > 1
    if wide:
        figure.add_scatter(
            x=[*band["at"], *reversed(band["at"].tolist())],
            y=[*band["low"], *reversed(band["high"].tolist())],
            mode="lines",
            fill="toself",
            fillcolor=looks.faded(colour, 0.18),
            line={"width": 0},
            legendgroup=curve.label,
            showlegend=False,
            hoverinfo="skip",
        )
    parts = [part for part in (rows[~alone], rows[alone]) if len(part)]
    for part in parts:
        figure.add_scatter(
            x=part["at"],
            y=part["value"],
            error_y=None if wide and part is parts[0] else bars(part, colour),
            mode="lines+text" if flat else "lines+markers+text",
            text=[""] * (len(part) - 1) + [in_figure(curve.label) if part is parts[0] else ""],
            textposition="top left",
            textfont={"color": colour},
            line={"color": colour, "dash": shape.dash, "width": 2},
            marker={"symbol": shape.symbol, "size": 9},
            name=in_figure(curve.label),
            legendgroup=curve.label,
            showlegend=part is parts[0],
            customdata=[f"α {row.alpha}: {told(row.value, row.low, row.high, metric)}" for row in part.itertuples()],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )


def against_bits(study: Study, metric: Metric) -> tuple[go.Figure, str]:
    """Every method at every format, at its best alpha. Formats go from wide to narrow.

    Raises:
        UserError: no point is quantized, or it is unknown which way the metric is better.
    """
    if (lower := metric.lower) is None:
        raise unsure(metric)
    grid = lay_out(study.frame, SERIES, (), metric.name)
    cells = shown_cells(grid)
    floats, cells = cells[cells["method"] == "fp"], cells[cells["method"] != "fp"]
    if cells.empty:
        raise UserError("No finished point is quantized: python -m sqbench.run -m method=rtn bits=w8a16,w4a16,w3a16 makes some")
    order = list(dict.fromkeys(in_order(cells, ("bits",))["bits"]))
    cells = cells.assign(at=cells["bits"].map(order.index), by=cells["value"] * (1 if lower else -1))
    cells = cells.assign(apart=apart(cells, grid.added))
    figure = go.Figure()
    groups = list(cells.groupby(["method", "apart"], sort=False))
    for place, ((method, more), rows) in enumerate(groups):
        best = rows.sort_values(["at", "by"], kind="stable").groupby("at").head(1)
        colour = looks.colour(method)
        named = [f"{name_of(row)}: {told(row.value, row.low, row.high, metric)}" for row in best.itertuples()]
        figure.add_scatter(
            x=best["at"] + 0.5 * ((place + 0.5) / len(groups) - 0.5),  # side by side, so that no interval hides another
            y=best["value"],
            error_y=bars(best, colour),
            mode="markers",  # nothing lies between two formats
            marker={"symbol": [looks.shape(bits).symbol for bits in best["bits"]], "size": 10, "color": colour},
            name=in_figure(f"{method} {more}".strip()),
            customdata=[in_figure(f"{bits} {text}") for bits, text in zip(best["bits"], named, strict=True)],
            hovertemplate="%{customdata}<extra></extra>",
        )
    reference(figure, float(floats["value"].iloc[0]) if len(floats) else math.nan)
    ticks = {"tickvals": list(range(len(order))), "ticktext": [in_figure(name) for name in order]}
    figure.update_xaxes(title_text="format", range=[-0.5, len(order) - 0.5], **ticks)
    value_axis(figure, metric, cells["value"].tolist())
    chosen = " Of several alphas the best one, chosen on these very examples." if cells["alpha"].nunique() > 1 else ""
    return figure, f"{intervals(grid)}{chosen}"
