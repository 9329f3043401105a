"""A picture of the numbers that formats can hold, each relative to its largest."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sqbench.formats.grid import grid
from sqbench.formats.scheme import Scheme
from sqbench.reporting import style
from sqbench.reporting.formats import element_name

CAPTION = (
    "Every line is a number that a code can stand for, divided by the largest one of its element, which is where the largest value"
    " of a block lies. Schemes with the same element share a row. Scales of a block or a tensor move a row as a whole."
)


def grids_picture(schemes: Sequence[Scheme]) -> Figure:
    """The grids of the weights of schemes, a row for each different one, from many numbers to few."""
    rows: dict[tuple[float, ...], tuple[str, list[str]]] = {}
    for scheme in schemes:
        fmt = scheme.weights or scheme.activations
        assert fmt is not None
        values = grid(fmt)
        key = tuple((values / values.abs().max()).tolist())
        rows.setdefault(key, (element_name(fmt), []))[1].append(scheme.name)
    ordered = sorted(rows.items(), key=lambda item: -len(item[0]))
    figure = Figure(figsize=(style.WIDTH, 0.9 + 0.42 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    for place, (lines, (element, names)) in enumerate(ordered):
        width = 0.25 if len(lines) > 100 else 0.6 if len(lines) > 40 else 1.0
        colour = style.COLOURS[place % len(style.COLOURS)]
        axes.vlines(lines, place - 0.32, place + 0.32, color=colour, linewidth=width)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        axes.text(1.03, place, f"{element}\n{listed}", va="center", fontsize=8)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlim(-1.02, 1.02)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("value / largest value")
    style.titled(figure, "The numbers of each element", CAPTION)
    return figure
