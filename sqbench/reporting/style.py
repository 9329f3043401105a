"""The look of every picture. Series differ without colour vision and in grey print. The same data gives the same bytes."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from sqbench.errors import UserError, known
from sqbench.reporting import looks
from sqbench.storage.files import atomic_path

# Okabe and Ito's palette (2008), for anything that is not a method. Its yellow is too pale for lines on white and left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
# Before and after. They differ in width too.
PAIR: tuple[dict[str, Any], ...] = ({"color": COLOURS[0], "linewidth": 1.3}, {"color": COLOURS[1], "linewidth": 0.7})
GREY = "#595959"

LINE = 0.17  # inches, height of a legend line
WIDTH = 7.0  # inches, the text width of an A4 page; text has at least 8 points there
DPI = 200
METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # no dates, no versions
_SETTINGS = {
    "font.size": 8,
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    "figure.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "svg.hashsalt": "sqbench",  # makes ids inside a file depend on its content only
}


@contextmanager
def applied() -> Iterator[None]:
    """Draw and save inside this block. It applies our settings to matplotlib's defaults and ignores the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


class Series:
    """The look of the lines of a picture. The method decides the colour, the format the marker.

    Lines that share both differ in their dashes. When all dashes are used, the markers become hollow.
    """

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()

    def look(self, method: str, bits: str) -> dict[str, Any]:
        """The look of the next line of this method and format."""
        rounds, again = divmod(self._seen[method, bits], len(DASHES))
        self._seen[method, bits] += 1
        shape = looks.shape(bits)
        hollow = {"markerfacecolor": "white"} if rounds % 2 else {}
        dashes = shape.dashes if not again else [one for one in DASHES if one != shape.dashes][again - 1]
        return {"color": looks.colour(method), "marker": shape.marker, "linestyle": dashes, **hollow}


def floor(*parts: np.ndarray) -> float:
    """The smallest nonzero |value|, at which a logarithmic axis shows zeros."""
    values = np.abs(np.concatenate([part.reshape(-1) for part in parts]))
    return float(values[values > 0].min()) if (values > 0).any() else 1.0


def plain(axes: Axes) -> None:
    """Label a logarithmic axis that spans few powers of ten with plain numbers."""
    low, high = axes.get_ylim()
    if low > 1e-3 and high < 1e4:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    between = ("2", "5") if high < 10 * low else ()  # on wider axes the powers of ten are enough
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda x, place: f"{x:g}" if f"{x:e}"[0] in between else ""))


def titled(figure: Figure, title: str, caption: str) -> None:
    """Add a title above the picture and a caption below it."""
    width = figure.get_size_inches()[0]
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.supxlabel(textwrap.fill(caption, int(width * 16.5)), x=0.01, ha="left", fontsize=8, color=GREY)


def check_formats(formats: Sequence[str]) -> None:
    """Raise UserError for a file format that we do not write."""
    for name in formats:
        if name not in METADATA:
            raise UserError(f"formats=[{','.join(formats)}]: unknown {name}; {known(name, METADATA)}")
    if not formats:
        raise UserError(f"formats=[]: one of them at least; {known('', METADATA)}")


def save(figure: Figure, folder: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure to `folder/stem.FORMAT` for every format. No file is ever written in part."""
    name = re.sub(r"[^\w.,-]+", "-", stem).strip("-")
    paths = [folder / f"{name}.{kind}" for kind in formats]
    for path, kind in zip(paths, formats, strict=True):
        with atomic_path(path) as part:
            figure.savefig(part, format=kind, dpi=DPI, metadata=METADATA[kind])
    return paths
