"""The picture of a layer's input and weight, before and after smoothing. It takes arrays and returns a figure.

This module knows nothing of models. Draw inside `style.applied`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sqbench.reporting import style

_VIEW = {"elev": 26, "azim": -56}  # low, to show heights; turned, so that channels run along the front
_BINS = 160


@dataclass(frozen=True)
class Tensors:
    """A layer's input and weight in one state.

    Attributes:
        name: name of the state: original, or smoothed.
        activation: [tokens, channels] some of the inputs.
        weight: [channels, out].
        activation_range: [channels] absmax over the whole calibration.
        weight_range: [channels] absmax.
        limits: clipping range of the input.
    """

    name: str
    activation: np.ndarray
    weight: np.ndarray
    activation_range: np.ndarray
    weight_range: np.ndarray
    limits: tuple[float, float]


def decimate(values: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `rows` x `columns` maxima over blocks of |values| [R, C]. Maxima keep every peak.

    Returns:
        Maxima, and the first row and column of each block.
    """
    result = np.abs(values)
    starts = []
    for axis, most in ((0, rows), (1, columns)):
        count = min(most, result.shape[axis])
        start = np.arange(count) * result.shape[axis] // count
        result = np.maximum.reduceat(result, start, axis=axis)
        starts.append(start)
    return result, starts[0], starts[1]


def ratio(ranges: np.ndarray) -> float:
    """The largest channel range over the median of the live (nonzero) ones. 1 if all channels are dead."""
    live = ranges[ranges > 0]
    return float(live.max() / np.median(live)) if len(live) else 1.0


def as_data(states: Sequence[Tensors], *, tokens: int, channels: int) -> list[dict[str, Any]]:
    """The surfaces of a picture as plain data. `sqbench.report` shows them as surfaces that can be turned.

    Each state has its `name`, `activation` and `weight`. These two have the heights `z` [rows, columns] to 3 digits, the first row
    and column of each block (`rows`, `columns`), and the `ratio` of the largest channel to the median one.
    """

    def surface(state: Tensors, field: str) -> dict[str, Any]:
        heights, rows, columns = _oriented(field, getattr(state, field), tokens, channels)
        digits = [[float(f"{height:.3g}") for height in row] for row in heights.tolist()]
        told = float(f"{ratio(getattr(state, f'{field}_range')):.4g}")
        return {"z": digits, "rows": rows.tolist(), "columns": columns.tolist(), "ratio": told}

    return [{"name": state.name, **{field: surface(state, field) for field in ("activation", "weight")}} for state in states]


def distributions_picture(
    states: Sequence[Tensors], title: str, caption: str, *, channel: str, tokens: int = 128, channels: int = 192
) -> Figure:
    """|input| and |weight| of each state as surfaces on the same axes. Below are channel ranges, sorted ranges, and values.

    Args:
        states: the original, and optionally one state to compare with it.
        channel: the name of a channel of the weight (input channels of a convolution come with their kernel positions).
        tokens, channels: the most that a surface shows. A larger tensor is shown by the peaks of blocks.
    """
    alone = len(states) == 1
    figure = Figure(figsize=(style.WIDTH, 7.0 if alone else 9.6), layout="constrained")
    heights = [1.5, 1, 1] if alone else [1.5, 1.5, 1, 1]
    cells = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    kinds = (("activation", "|input|", "token", "channel"), ("weight", "|weight|", "out", channel))
    for row, (field, name, *sides) in enumerate(kinds):
        pooled = [_oriented(field, getattr(state, field), tokens, channels) for state in states]
        top = max(float(heights_.max()) for heights_, _, _ in pooled) or 1.0
        for column, (state, surface) in enumerate(zip(states, pooled, strict=True)):
            cell = cells[0, row] if alone else cells[row, column]
            axes = figure.add_subplot(cell, projection="3d", computed_zorder=False)
            _surface(axes, surface, top, f"{name}, {state.name}", sides)
    for column, (field, name, side) in enumerate((("activation_range", "input", "channel"), ("weight_range", "weight", channel))):
        axes = figure.add_subplot(cells[-2, column])
        _profile(axes, states, field, sort=False)
        _legend(axes)
        axes.set_title(f"{name}: range of each channel", loc="left")
        axes.set_xlabel(side)
    axes = figure.add_subplot(cells[-1, 0])
    _profile(axes, states, "activation_range", sort=True)
    _profile(axes, states, "weight_range", sort=True, linestyle=(0, (3, 1.5)))
    _legend(axes)
    axes.set_title("sorted (solid: input, dashed: weight)", loc="left")
    axes.set_xlabel("rank of the channel")
    _values(figure.add_subplot(cells[-1, 1]), states)
    style.titled(figure, title, caption)
    return figure


def _oriented(field: str, values: np.ndarray, tokens: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decimate a tensor, with its channels along the second axis."""
    return decimate(values if field == "activation" else values.T, tokens, channels)


def _surface(axes: Any, surface: tuple[np.ndarray, np.ndarray, np.ndarray], top: float, title: str, sides: Sequence[str]) -> None:
    heights, rows, columns = surface
    x, y = np.meshgrid(columns, rows)
    options: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": top, "linewidth": 0, "antialiased": False}
    if min(heights.shape) > 1:
        drawn = axes.plot_surface(x, y, heights, rcount=heights.shape[0], ccount=heights.shape[1], **options)
        drawn.set_rasterized(True)  # a vector graphic of twenty thousand patches is too large
    else:
        axes.plot(x.flatten(), y.flatten(), heights.flatten(), **style.PAIR[0])
    axes.set_zlim(0, top)
    axes.view_init(**_VIEW)
    axes.set_box_aspect((1.5, 1.1, 0.8), zoom=1.3)
    axes.set_title(title, loc="left", y=1.0)
    axes.set_xlabel(sides[1], labelpad=-4)
    axes.set_ylabel(sides[0], labelpad=-4)
    axes.tick_params(pad=-2)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4, integer=axis is not axes.zaxis))
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))


def _profile(axes: Axes, states: Sequence[Tensors], field: str, *, sort: bool, linestyle: Any = "-") -> None:
    floor = style.floor(*(getattr(state, field) for state in states))
    for state, looks in zip(states, style.PAIR, strict=False):
        ranges = getattr(state, field)
        shown = np.maximum(np.sort(ranges)[::-1] if sort else ranges, floor)
        label = state.name if sort else f"{state.name}: max / median {ratio(ranges):.3g}"
        axes.plot(shown, label=label if linestyle == "-" else None, linestyle=linestyle, **looks)
    axes.set_yscale("log")
    axes.set_ylabel("absmax")
    style.plain(axes)
    axes.margins(x=0.01, y=0.08)


def _legend(axes: Axes) -> None:
    """Draw a legend in the upper right corner, and make free room there."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * max(2.0, (high / low) ** 0.5))
    axes.legend(loc="upper right")


def _values(axes: Axes, states: Sequence[Tensors]) -> None:
    """Draw counts of values on a logarithmic axis, with the clipping ranges as vertical lines."""
    reach = max(max(float(np.abs(state.activation).max()), *map(abs, state.limits)) for state in states) or 1.0
    edges = np.linspace(-reach, reach, _BINS + 1)
    for state, looks in zip(states, style.PAIR, strict=False):
        counts, _ = np.histogram(state.activation, edges)
        axes.stairs(counts, edges, label=state.name, **looks)
        for limit in state.limits:
            axes.axvline(limit, ymax=0.75, color=looks["color"], linestyle=(0, (4, 2)), linewidth=1.0)
    axes.set_yscale("log")
    most = max(np.histogram(state.activation, edges)[0].max() for state in states)
    axes.set_ylim(0.7, 3 * float(most) ** 1.35)  # room for the legend
    axes.set_title("values of the input (dashed: clipping range)", loc="left")
    axes.set_xlabel("value")
    axes.set_ylabel("count")
    axes.legend(loc="upper right")
