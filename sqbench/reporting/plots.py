"""Pictures of records: a metric against alpha, a metric against bytes, and the noise of every layer.

Draw inside `style.applied`.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sqbench.comparison import Metric
from sqbench.errors import UserError
from sqbench.reporting import style
from sqbench.reporting.beside import Name, write
from sqbench.reporting.grid import Grid
from sqbench.reporting.order import better
from sqbench.reporting.series import NOISE, curves, logarithmic, sized


def alpha_picture(grid: Grid) -> Figure:
    """A metric against alpha, a line for each method and bits. A method without alpha is level. The float model is dashed."""
    reference, found = curves(grid)
    if not any(curve.alphas for curve in found):
        raise UserError("alpha: no finished point has an alpha; python -m sqbench.run -m alpha=0.3,0.5,0.8 makes some")
    numbers = sorted({float(alpha) for curve in found for alpha in curve.alphas if alpha != "auto"})
    left, right = (numbers[0], numbers[-1]) if numbers else (0.0, 0.0)
    span = (right - left) or 1.0
    auto = right + 0.15 * span
    figure = Figure(figsize=(style.WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ends = (left - 0.04 * span, (auto if any("auto" in curve.alphas for curve in found) else right) + 0.04 * span)
    series, names = style.Series(), []
    for place, curve in enumerate(found):
        looks = series.look(curve.method, curve.bits)
        shift = (place - (len(found) - 1) / 2) * 0.006 * span  # intervals at the same alpha must not overlap
        if not curve.alphas:
            axes.plot(ends, curve.values * 2, label=curve.label, **{**looks, "markerfacecolor": "white"}, clip_on=False)
            names.append(Name(curve.label, curve.label, [(at, curve.values[0]) for at in reversed(ends)], looks["color"]))
            if not math.isnan(curve.low[0]):
                axes.axhspan(curve.low[0], curve.high[0], color=looks["color"], alpha=0.12, linewidth=0)
            continue
        for is_auto in (False, True):
            picked = [index for index, alpha in enumerate(curve.alphas) if (alpha == "auto") == is_auto]
            at = [auto + shift if is_auto else float(curve.alphas[index]) + shift for index in picked]
            values = [curve.values[index] for index in picked]
            axes.plot(at, values, **{**looks, "linestyle": "none" if is_auto else looks["linestyle"]})
            bars = [[abs(end[index] - curve.values[index]) for index in picked] for end in (curve.low, curve.high)]
            axes.errorbar(at, values, bars, fmt="none", ecolor=looks["color"], elinewidth=0.8, capsize=2)
        axes.plot([], [], label=curve.label, **looks)
        places = [auto if alpha == "auto" else float(alpha) for alpha in curve.alphas]
        names.append(Name(curve.label, curve.label, list(zip(places, curve.values, strict=True))[::-1], looks["color"]))
    if reference is not None:
        axes.axhline(reference, color="black", linestyle=(0, (6, 3)), linewidth=1.0, label="float model")
        names.append(Name("float model", "float model", [(end, reference) for end in ends], "black"))
    if any("auto" in curve.alphas for curve in found):
        shown = numbers if len(numbers) <= 12 else numbers[:: -(-len(numbers) // 12)]
        axes.set_xticks([*shown, auto], [*(f"{number:g}" for number in shown), "auto"])
    axes.set_xlim(*ends)
    axes.set_xlabel("α")
    _value_axis(axes.yaxis, axes, grid.metric, [value for curve in found for value in curve.values] + [reference or math.nan])
    style.titled(figure, f"{_titles(grid.metric)} against α", _caption(grid))
    _named(axes, names)
    return figure


def pareto_picture(frame: pd.DataFrame, metric: str) -> Figure:
    """A metric against weight megabytes: every point with its interval, and a line through the points that no other beats."""
    grid, cells = sized(frame, metric)
    figure = Figure(figsize=(style.WIDTH, 4.4), layout="constrained")
    axes = figure.add_subplot()
    best = cells[cells["front"]].sort_values("size")
    axes.plot(best["size"], best["value"], color=style.GREY, drawstyle="steps-post", linewidth=1.0, zorder=1)
    axes.plot(best["size"], best["value"], "o", color=style.GREY, fillstyle="none", markersize=10, zorder=1)
    series = style.Series()
    first: list[Name] = []  # points on the front are named first
    others: list[Name] = []
    for label, rows in cells.groupby("label", sort=False):
        looks = {**series.look(rows["method"].iloc[0], rows["bits"].iloc[0]), "linestyle": "none"}
        axes.plot(rows["size"], rows["value"], label=label, **looks)
        bars = [(rows[end] - rows["value"]).abs() for end in ("low", "high")]
        axes.errorbar(rows["size"], rows["value"], bars, fmt="none", ecolor=looks["color"], elinewidth=0.8, capsize=2)
        if rows["front"].any():  # points on the front show their alpha too
            for row in rows[rows["front"]].itertuples():
                text = label + (f" α={row.alpha}" if row.alpha else "")
                first.append(Name(text, label, [(row.size, row.value)], looks["color"]))
        else:
            rows = rows.sort_values("value", ascending=grid.metric.lower is not False)
            others.append(Name(label, label, list(zip(rows["size"], rows["value"], strict=True)), looks["color"]))
    _scale(axes.xaxis, cells["size"].tolist())
    axes.set_xlabel("weights as stored (MB)")
    _value_axis(axes.yaxis, axes, grid.metric, cells["value"].tolist())
    axes.margins(0.06, 0.1)
    style.titled(
        figure, f"{_titles(grid.metric)} against the size of the weights", "A ring: none is smaller and better. " + _caption(grid)
    )
    _named(axes, first + others)
    return figure


def layers_picture(layers: pd.DataFrame) -> Figure:
    """Signal to quantization noise of the input and weight of every layer, by point. Each panel names its worst layer."""
    figure = Figure(figsize=(style.WIDTH, 6.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    shared = _shared(layers["layer"])
    for axes, (name, title) in zip(panels, NOISE, strict=True):
        worst = layers.loc[layers[name].idxmin()] if layers[name].notna().any() else None
        series = style.Series()
        for label, rows in layers.groupby("label", sort=False):
            looks = series.look(rows["method"].iloc[0], rows["bits"].iloc[0])
            axes.plot(rows["index"], rows[name], label=label, markersize=3, linewidth=0.8, **looks)
        if worst is None:
            axes.text(0.5, 0.5, "left in float by all of these points", transform=axes.transAxes, ha="center", color=style.GREY)
        else:
            late = worst["index"] > layers["index"].max() / 2
            axes.plot(worst["index"], worst[name], "o", color=style.GREY, fillstyle="none", markersize=9)
            said = f"{worst['layer'].removeprefix(shared)}  {worst[name]:.1f} dB"
            side, ha = (-8, "right") if late else (8, "left")
            axes.annotate(said, (worst["index"], worst[name]), xytext=(side, -3), textcoords="offset points", ha=ha)
        axes.set_ylabel(f"SQNR of the {title} (dB)")
        axes.margins(0.02, 0.12)
    panels[-1].set_xlabel("layer, in order of execution")
    _legend(panels[0], *panels[1].get_legend_handles_labels())
    count = layers["index"].max() + 1
    said = f"Model {layers['model'].iloc[0]}, {count} layers. Higher is better. Inputs: the calibration's sample rows."
    said += " A ring marks the worst layer"
    said += f", whose name begins with {shared}" if shared else "."
    style.titled(figure, "Signal to quantization noise, layer by layer", said)
    return figure


def _shared(names: Iterable[str]) -> str:
    """The modules that contain all of these layers, with a dot at the end (`model.layers.`). Empty if there are none."""
    levels = zip(*(name.split(".")[:-1] for name in set(names)), strict=False)
    return "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _titles(metric: Metric) -> str:
    return metric.name[:1].upper() + metric.name[1:]


def _value_axis(axis: Any, axes: Axes, metric: Metric, values: list[float]) -> None:
    notes = [note for note in (metric.unit, better(metric)) if note]
    axes.set_ylabel(f"{metric.name} ({', '.join(notes)})" if notes else metric.name)
    _scale(axis, values)


def _scale(axis: Any, values: list[float]) -> None:
    if logarithmic(values):
        axis._set_axes_scale("log")


def _named(axes: Axes, names: Sequence[Name]) -> None:
    """Name the series of the axes beside their marks. A legend lists those without room there."""
    handles, labels = axes.get_legend_handles_labels()
    named = write(axes, names)
    left = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label not in named]
    if left:
        _legend(axes, *zip(*left, strict=True))


def _legend(axes: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draw a legend above the axes. The sheet grows by its height, so the plot keeps its size."""
    columns = max(1, min(4, 90 // (max(map(len, labels), default=1) + 8)))
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_figheight(figure.get_figheight() + style.LINE * -(-len(labels) // columns))
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.2)


def _caption(grid: Grid) -> str:
    """The caption: the shared fields of all results, the kind of the intervals, and the number of examples."""
    cells = grid.cells
    parts = ["All with " + ", ".join(f"{name} {value}" for name, value in grid.context.items())] if grid.context else []
    levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(cells["level"].dropna())))
    if levels:
        parts.append(f"Intervals: {levels}, of the paired difference from the float model")
    if (cells["points"] > 1).any():
        parts.append("Points of several seeds are their mean, without interval")
    if failed := int(cells["failed"].sum()):
        parts.append(f"{failed} failed points are not shown")
    counts = sorted(set(cells["n"].dropna()))
    if counts:
        parts.append("n = " + (f"{counts[0]:.0f}" if len(counts) == 1 else f"{counts[0]:.0f} to {counts[-1]:.0f}") + " examples")
    return ". ".join(parts) + "."
