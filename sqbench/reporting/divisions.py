"""The effect of folding a scale into a norm and its reading weights, by channel, as a table and a picture. It takes arrays."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from sqbench.reporting import style

TOP = 8  # channels in a printed table


@dataclass(frozen=True)
class Division:
    """The effect of folding one scale, by channel. All arrays are [channels], and the pairs are before and after.

    Attributes:
        norm, bias: weight and bias of the norm. `bias` is None if the norm has none.
        activation: absmax of the norm's output.
        columns: absmax of the columns of the weights that read it.
    """

    scale: np.ndarray
    norm: tuple[np.ndarray, np.ndarray]
    bias: tuple[np.ndarray, np.ndarray] | None
    activation: tuple[np.ndarray, np.ndarray]
    columns: tuple[np.ndarray, np.ndarray]


def division_table(division: Division, title: str) -> Table:
    """The channels with the largest input, and the median over all, as a table."""
    table = Table(title=title, title_justify="left")
    pairs = [("norm weight", division.norm), ("norm bias", division.bias)]
    pairs += [("input absmax", division.activation), ("weight column absmax", division.columns)]
    for name in ("channel", "s", *(name for name, pair in pairs if pair is not None)):
        table.add_column(name, justify="right")
    values = [pair for _, pair in pairs if pair is not None]
    for channel in np.argsort(-division.activation[0], kind="stable")[:TOP]:
        cells = [f"{before[channel]:.3g} -> {after[channel]:.3g}" for before, after in values]
        table.add_row(str(channel), f"{division.scale[channel]:.3g}", *cells)
    cells = [f"{np.median(np.abs(before)):.3g} -> {np.median(np.abs(after)):.3g}" for before, after in values]
    table.add_row("median |.|", f"{np.median(division.scale):.3g}", *cells)
    return table


def divided_picture(division: Division, title: str, caption: str) -> Figure:
    """The scale, the norm, the activation and the weight's columns by channel, in the order of the scale."""
    figure = Figure(figsize=(style.WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flatten()
    order = np.argsort(-division.scale, kind="stable")
    rank = np.arange(len(order))
    panels[0].plot(rank, division.scale[order], color="black")
    panels[0].axhline(1.0, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    names = ("|norm weight|", "|input|, largest", "|weight| of a column, largest")
    for axes, name, pair in zip(panels[1:], names, (division.norm, division.activation, division.columns), strict=True):
        for values, label, looks in zip(pair, ("before", "after"), style.PAIR, strict=True):
            axes.plot(rank, np.maximum(np.abs(values[order]), style.floor(*pair)), label=label, **looks)
        axes.set_title(name, loc="left")
        axes.legend(loc="best")
    panels[0].set_title("s: what norm and input are divided by", loc="left")
    for axes in panels:
        axes.set_yscale("log")
        style.plain(axes)
    for axes in panels[2:]:
        axes.set_xlabel("channel, by s from large to small")
    style.titled(figure, title, caption)
    return figure
