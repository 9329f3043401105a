"""Names written beside their marks, where they hide nothing. A named series needs no legend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

GAP = 6  # points between a mark and its name
_REACH = 3.5  # radius of a mark in points
_SAMPLES = 60  # places along a line that a name may not hide
_FRONT = 2  # matplotlib's zorder of lines
_SIDES: tuple[tuple[int, int, Any, Any], ...] = (  # sides of a mark, in the order of trying
    *((1, 0, "left", "center"), (-1, 0, "right", "center"), (0, 1, "center", "bottom"), (0, -1, "center", "top")),
    *((1, 1, "left", "bottom"), (1, -1, "left", "top"), (-1, 1, "right", "bottom"), (-1, -1, "right", "top")),
)
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True)
class Name:
    """A text, and the marks that it may stand beside.

    Attributes:
        series: the series of the marks, as in a legend.
        marks: [(x, y)] in data coordinates, the best first.
    """

    text: str
    series: str
    marks: Sequence[tuple[float, float]]
    colour: str


def write(axes: Axes, names: Iterable[Name]) -> set[str]:
    """Write each name beside one of its marks, if there is room. Returns the series that got a name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # marks have their places only after layout
    inside = axes.get_window_extent()
    reach = _REACH * figure.dpi / 72
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in _drawn(axes)]
    taken += [text.get_window_extent() for text in axes.texts]
    named = set()
    for name in names:
        box = next((box for at in name.marks if (box := _written(axes, name, at, inside, taken)) is not None), None)
        if box is not None:
            taken.append(box)
            named.add(name.series)
    return named


def _written(axes: Axes, name: Name, at: tuple[float, float], inside: Bbox, taken: Sequence[Bbox]) -> Bbox | None:
    """Write a name beside a mark, and return its box. None if no side of the mark has room."""
    if not np.isfinite(at).all():
        return None
    text = axes.annotate(name.text, at, xytext=(0, 0), textcoords="offset points", color=name.colour, path_effects=_HALO)
    for across, up, ha, va in _SIDES:
        step = GAP if across == 0 or up == 0 else 0.6 * GAP
        text.xyann = (step * across, step * up)
        text.set_horizontalalignment(ha)
        text.set_verticalalignment(va)
        box = text.get_window_extent()
        held = box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
        if held and not any(box.overlaps(other) for other in taken):
            return box
    text.remove()
    return None


def _drawn(axes: Axes) -> np.ndarray:
    """Places of lines and marks in the figure, [n, 2] in pixels. Lines in the background are left out: names may cover them."""
    found = [np.zeros((0, 2))]
    for line in (line for line in axes.lines if line.zorder >= _FRONT):
        at = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        at = at[np.isfinite(at).all(axis=1)]
        if len(at) > 1 and line.get_linestyle() not in ("None", "none", " ", ""):
            along = np.linspace(0, len(at) - 1, max(_SAMPLES, len(at)))
            at = np.stack([np.interp(along, np.arange(len(at)), at[:, part]) for part in (0, 1)], axis=1)
        found.append(at)
    return np.concatenate(found)
