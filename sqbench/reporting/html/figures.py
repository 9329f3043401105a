"""A figure of the page, and the parts that figures of a metric share: axes, intervals, hover texts."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sqbench.comparison import Metric
from sqbench.errors import UserError
from sqbench.reporting.grid import Grid
from sqbench.reporting.html.text import in_figure, named_metric
from sqbench.reporting.looks import GREY
from sqbench.reporting.series import logarithmic
from sqbench.reporting.units import number


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        title: the text above it.
        told: the text below it. It explains the marks, and names what was left out.
        spec: Plotly's JSON. None if there is nothing to draw. `told` then gives the reason and a remedy.
    """

    title: str
    told: str
    spec: str | None


def drawn(title: str, make: Callable[[], tuple[go.Figure, str]]) -> Figure:
    """A figure, or a sentence in its place that says why there is none."""
    try:
        figure, told = make()
    except UserError as reason:
        return Figure(title, str(reason), None)
    return Figure(title, told, str(figure.to_json()))


def value_axis(figure: go.Figure, metric: Metric, values: Sequence[float]) -> None:
    """Set up the vertical axis of a metric."""
    kind = "log" if logarithmic(values) else "linear"
    figure.update_yaxes(title_text=in_figure(named_metric(metric, better=True)), type=kind)


def reference(figure: go.Figure, value: float | None) -> None:
    """Draw a dashed line at the float model's value, if it is known."""
    if value is not None and math.isfinite(value):
        line = {"color": GREY, "dash": "dash", "width": 1.5}
        figure.add_hline(y=value, line=line, annotation_text="float", annotation_position="top left")


def bars(rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    """Error bars from the `low` and `high` of cells. Unknown ends have bars of length 0."""
    ends = {"array": _lengths(rows["high"], rows["value"]), "arrayminus": _lengths(rows["value"], rows["low"])}
    return {"type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 3, **ends}


def _lengths(upper: Iterable[float], lower: Iterable[float]) -> list[float]:
    lengths = (abs(one - other) for one, other in zip(upper, lower, strict=True))
    return [0.0 if math.isnan(length) else length for length in lengths]


def told(value: float, low: float, high: float, metric: Metric) -> str:
    """A value with its interval, `15.09 [15.02, 15.16]`, from numbers in the units of an axis."""
    value_, *ends = (number(part * metric.scale, metric) for part in (value, low, high))
    return f"{value_} {metric.unit}".strip() + ("" if math.isnan(low) else f" [{', '.join(ends)}]")


def intervals(grid: Grid) -> str:
    """Sentences on the intervals, and on points that are not shown."""
    levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(grid.cells["level"].dropna())))
    parts = [f"Intervals: {levels}, of the paired difference from the float model."] if levels else []
    if (grid.cells["points"] > 1).any():
        parts.append("Points of several seeds are their mean, without interval.")
    if failed := int(grid.cells["failed"].sum()):
        parts.append(f"{failed} failed points are not shown.")
    return " ".join(parts)
