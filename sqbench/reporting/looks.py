"""The look of methods and formats. Each method has one colour and each format one shape, in every picture."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GREY = "#7d8590"  # the float model, and anything without a method
# Each has a contrast of at least 3:1 (WCAG 2.2, 1.4.11) to white and to the dark background of the report.
COLOURS: Mapping[str, str] = {
    "fp": GREY,
    "rtn": "#8a7a1a",
    "minmax": "#2f7fd6",
    "ema_minmax": "#0f93a8",
    "mean_minmax": "#6b74d8",
    "percentile": "#b8860b",
    "mse": "#a06a4a",
    "histogram": "#cf5f10",
    "entropy": "#d9534f",
    "smoothquant": "#15936a",
    "awq": "#a763c9",
    "gptq": "#5f8f1f",
    "qat": "#d6477f",
    "qat_lsq": "#b0568f",
    "checkpoint": "#5b7286",
    "peer": "#7a5c8f",
}
_OTHERS = ("#5f89a8", "#c2692f", "#3f8f8f", "#9a6fb8")  # for the user's own methods


@dataclass(frozen=True)
class Shape:
    """The shape of a format: Plotly's symbol and dash, and matplotlib's marker and dashes."""

    symbol: str
    marker: str
    dash: str
    dashes: Any


_SOLID, _DASH, _DOT, _DASHDOT = "-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5))
SHAPES: Mapping[str, Shape] = {
    "fp": Shape("hexagram", "h", "solid", _SOLID),
    "w8a8": Shape("circle", "o", "solid", _SOLID),
    "w8a8_dynamic": Shape("square", "s", "solid", _SOLID),
    "w8a16": Shape("diamond", "D", "solid", _SOLID),
    "w6a6": Shape("triangle-up", "^", "dash", _DASH),
    "w4a16": Shape("triangle-down", "v", "dash", _DASH),
    "w4a8": Shape("cross", "P", "dash", _DASH),
    "w4a4": Shape("x", "X", "dot", _DOT),
    "w4a4_dynamic": Shape("star", "*", "dot", _DOT),
    "w3a16": Shape("pentagon", "p", "dashdot", _DASHDOT),
    "fp8": Shape("hexagon", "H", "solid", _SOLID),
    "fp8_dynamic": Shape("octagon", "8", "solid", _SOLID),
    "fp8_block": Shape("square-x", "$8$", "solid", _SOLID),
    "fp8a16": Shape("hexagon2", "d", "solid", _SOLID),
    "mxfp8": Shape("circle-x", "1", "solid", _SOLID),
    "mxfp8a16": Shape("circle-cross", "2", "solid", _SOLID),
    "mxfp6": Shape("diamond-x", "3", "longdash", _DASH),
    "mxfp6a16": Shape("diamond-cross", "4", "longdash", _DASH),
    "mxfp4": Shape("hourglass", "+", "dash", _DASH),
    "mxfp4a16": Shape("bowtie", "x", "dash", _DASH),
    "nvfp4": Shape("star-diamond", "$N$", "dash", _DASH),
    "nvfp4a16": Shape("star-square", "$n$", "dash", _DASH),
    "nf4": Shape("diamond-tall", "$q$", "dash", _DASH),
    "w4a16_g32": Shape("triangle-ne", "$a$", "dashdot", _DASHDOT),
    "w4a16_g32_sym": Shape("triangle-se", "$b$", "dashdot", _DASHDOT),
    "w4a16_g64": Shape("triangle-sw", "$c$", "dashdot", _DASHDOT),
    "w4a16_g64_sym": Shape("triangle-nw", "$d$", "dashdot", _DASHDOT),
    "w4a16_g128": Shape("star-triangle-up", "$e$", "dashdot", _DASHDOT),
    "w4a16_g128_sym": Shape("star-triangle-down", "$f$", "dashdot", _DASHDOT),
    "w4a16_channel": Shape("square-cross", "$g$", "dashdot", _DASHDOT),
    "w4a16_channel_sym": Shape("diamond-wide", "$h$", "dashdot", _DASHDOT),
    "q8_0": Shape("arrow-up", "$i$", "solid", _SOLID),
    "q5_1": Shape("arrow-down", "$j$", "longdash", _DASH),
    "q5_0": Shape("arrow-left", "$k$", "longdash", _DASH),
    "q4_1": Shape("arrow-right", "$l$", "dash", _DASH),
    "q4_0": Shape("arrow-bar-up", "$m$", "dash", _DASH),
}
_OTHER_SHAPES = (Shape("triangle-left", "<", "longdash", _DASH), Shape("triangle-right", ">", "longdash", _DASH))


def colour(method: str) -> str:
    """The colour of a method. For the user's own methods it follows from the name."""
    return COLOURS.get(method) or _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)]


def shape(bits: str) -> Shape:
    """The shape of a format. For the user's own formats it follows from the name."""
    return SHAPES.get(bits) or _OTHER_SHAPES[zlib.crc32(bits.encode()) % len(_OTHER_SHAPES)]


def faded(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` as rgba with this opacity."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
