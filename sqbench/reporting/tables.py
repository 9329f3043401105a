"""A table as CSV and Markdown, and the files of all formats. The same table gives the same bytes."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.reporting.cells import caption, emboldened, printable, texts
from sqbench.reporting.frame import DECLARED
from sqbench.reporting.grid import Grid, wide
from sqbench.reporting.latex import slug, to_latex
from sqbench.storage.files import write_text

_LONG_FLOAT = "%.10g"  # fewer digits than the noise of a float64 sum, more than any table shows


def to_long_csv(frame: pd.DataFrame) -> str:
    """The long frame with unscaled numbers, empty if unknown. It has a column `float` only if speeds were measured."""
    frame = frame.drop(columns=[DECLARED, *["float"] * int(frame["float"].isna().all())])
    return frame.to_csv(index=False, float_format=_LONG_FLOAT, lineterminator="\n")


def to_wide_csv(grid: Grid) -> str:
    """The table with one unscaled number per cell.

    Further columns follow each column where the table has such values: the spread and counts of several points, the test against
    the float model, and `best` (bold in the other formats). With seeds or speeds, the change against the float model and its
    interval follow too.
    """
    parts = {"": wide(grid, lambda cell: _LONG_FLOAT % cell.value if cell.points else "fail")}
    if (grid.cells["points"] + grid.cells["failed"] > 1).any():
        parts[" seed_std"] = wide(grid, lambda cell: _LONG_FLOAT % cell.seed_std if cell.points > 1 else "--")
        parts[" points"] = wide(grid, lambda cell: str(cell.points))
        parts[" failed"] = wide(grid, lambda cell: str(cell.failed))
    changes = {"factor" if grid.metric.speed else "change": "delta", "low": "low", "high": "high"}
    if (timed := grid.cells["float"].notna().any()) or ((grid.cells["points"] > 1) & grid.cells["delta"].notna()).any():
        parts |= {f" {name}": wide(grid, _shown(field)) for name, field in changes.items()}
    if timed:
        parts[" float"] = wide(grid, _shown("float"))
    if grid.cells["p_holm"].notna().any():
        for name in ("p", "p_holm", "detectable"):
            parts[f" {name}"] = wide(grid, _shown(name))
    if grid.cells["best"].any():
        parts[" best"] = wide(grid, lambda cell: str(cell.best).lower() if cell.points else "--")
    flat = {name + suffix: part.iloc[:, place] for place, name in enumerate(_heads(parts[""])) for suffix, part in parts.items()}
    return pd.DataFrame(flat).to_csv(lineterminator="\n")


def to_markdown(grid: Grid) -> str:
    """A Markdown table with aligned columns, and the caption below it."""
    words = emboldened(texts(grid).map(_markdown), grid, r"**\1**")
    sides = words.index.to_frame(index=False).map(_markdown).to_numpy()
    lines = [[*side, *row] for side, row in zip(sides, words.to_numpy(), strict=True)]
    head = [_markdown(name) for name in (*grid.rows, *_heads(words))]
    return _aligned([head, *lines], len(grid.rows)) + f"\n\n{_markdown(caption(grid))}\n"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], sides: int) -> str:
    """An aligned Markdown table. The first `sides` columns are labels, flush left. The others are numbers."""
    return _aligned([[_markdown(text) for text in line] for line in (head, *lines)], sides)


def _aligned(escaped: list[list[str]], sides: int) -> str:
    widths = [max(3, *(len(text) for text in column)) for column in zip(*escaped, strict=True)]
    escaped.insert(1, ["-" * width if place < sides else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    rows = ("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in escaped)
    return "\n".join(rows)


def write_tables(frame: pd.DataFrame, grid: Grid, folder: Path, latex: Callable[[Grid], str] = to_latex) -> list[Path]:
    """Write `long.csv`, and the grid as `METRIC.csv`, `.tex` and `.md`. No file is ever written in part."""
    stem = slug(grid.metric.name)
    files = {"long.csv": to_long_csv(frame), f"{stem}.csv": to_wide_csv(grid)}
    files |= {f"{stem}.tex": latex(grid), f"{stem}.md": to_markdown(grid)}
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _shown(name: str) -> Callable[[Any], str]:
    """A function that writes one number of a cell."""
    return lambda cell: "--" if math.isnan(getattr(cell, name)) else _LONG_FLOAT % getattr(cell, name)


def _heads(cells: pd.DataFrame) -> list[str]:
    """The labels of the columns, one text each."""
    return [" / ".join(part or "-" for part in top) if isinstance(top, tuple) else top for top in cells.columns]


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", printable(text))
