"""A table's cells as CSV, LaTeX and Markdown, byte for byte stable."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.reporting.grid import Grid, wide
from sqbench.reporting.units import SPEEDS, change_text, extra_decimals, number, unit_of
from sqbench.storage import write_text

_LATEX = {char: rf"\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_FIRST_WORD = r"^(\S+)"  # of a cell: its value, which is bold or not
_LONG_FLOAT = "%.10g"  # below the noise of a float64 sum, above anything a table shows


def cell_text(cell: Any, metric: str, *, with_n: bool = False) -> str:
    """`15.10 (+0.240 [0.200, 0.400])`, `15.10 ± 0.05 (3 seeds, +0.240)`, `fail`, or a mean that says how many runs failed.

    A change that is not significant is `n.s.`, and the cell says which would have been detected.
    """
    if cell.points == 0:
        return "fail"
    notes = [f"{cell.points} seeds"] * (cell.points > 1) + [f"{cell.failed} failed"] * (cell.failed > 0)
    if not math.isnan(cell.delta):
        notes.append(change_text(cell.delta, cell.low, cell.high, metric))
    if cell.unclear:
        notes.append(f"n.s., detectable {number(cell.detectable, metric, extra=extra_decimals(cell.delta, metric))}")
    notes += [f"n={cell.n:.0f}"] * (with_n and not math.isnan(cell.n))
    spread = f" ± {number(cell.seed_std, metric)}" * (cell.points > 1)
    return number(cell.value, metric) + spread + f" ({', '.join(notes)})" * bool(notes)


def caption(grid: Grid) -> str:
    """What the table shows, what all of its results share, and how to read a cell."""
    cells, (_, unit) = grid.cells, unit_of(grid.metric)
    title = f"{grid.metric} ({unit})" if unit else grid.metric
    parts = [f"{title} by {', '.join(grid.rows)}" + f" (down) and {', '.join(grid.columns)} (across)" * bool(grid.columns)]
    if grid.context:
        parts.append("All with " + ", ".join(f"{name} {value}" for name, value in grid.context.items()))
    if grid.added:
        parts.append(f"Split by {', '.join(grid.added)}, so that no cell mixes them")
    if cells["delta"].notna().any():
        levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(cells["level"][cells["low"].notna()])))
        change = "how many times as fast as the float model" if grid.metric in SPEEDS else "the change against the float model"
        parts.append(f"In brackets {change}" + f" [and its {levels} interval]" * bool(levels))
    if (cells["points"] > 1).any():
        parts.append("± is the standard deviation over seeds")
    counts = set(cells["n"].dropna())
    if len(counts) == 1:
        parts.append(f"n = {counts.pop():.0f} examples")
    return ". ".join([*parts, *grid.notes, "-- was not run, fail did not finish"]) + "."


def _texts(grid: Grid) -> pd.DataFrame:
    """The cells as people read them; n in each where it is not the same in all (else the caption has it)."""
    varies = grid.cells["n"].nunique() > 1
    return wide(grid, lambda cell: cell_text(cell, grid.metric, with_n=varies))


def _bold(grid: Grid) -> pd.DataFrame:
    """Which cells are bold, in the layout of their texts."""
    return wide(grid, lambda cell: "bold" if cell.best else "") == "bold"


def to_long_csv(frame: pd.DataFrame) -> str:
    """The long frame, unscaled numbers, empty where unknown."""
    return frame.to_csv(index=False, float_format=_LONG_FLOAT, lineterminator="\n")


def to_wide_csv(grid: Grid) -> str:
    """One unscaled number a cell. Where there are any, every column is followed by the spread and counts of several points, by the
    test against the float model, and by whether a cell is `best`, which is bold in the other formats.
    """
    parts = {"": wide(grid, lambda cell: _LONG_FLOAT % cell.value if cell.points else "fail")}
    if (grid.cells["points"] + grid.cells["failed"] > 1).any():
        parts[" seed_std"] = wide(grid, lambda cell: _LONG_FLOAT % cell.seed_std if cell.points > 1 else "--")
        parts[" points"] = wide(grid, lambda cell: str(cell.points))
        parts[" failed"] = wide(grid, lambda cell: str(cell.failed))
    if grid.cells["p_holm"].notna().any():
        for name in ("p", "p_holm", "detectable"):
            parts[f" {name}"] = wide(grid, _shown(name))
    if grid.cells["best"].any():
        parts[" best"] = wide(grid, lambda cell: str(cell.best).lower() if cell.points else "--")
    flat = {name + suffix: part.iloc[:, place] for place, name in enumerate(_heads(parts[""])) for suffix, part in parts.items()}
    return pd.DataFrame(flat).to_csv(lineterminator="\n")


def to_latex(grid: Grid) -> str:
    """A booktabs table (needs only `\\usepackage{booktabs}`), everything escaped."""
    texts = _texts(grid)
    minus = texts.map(lambda text: re.sub(r"(?<![\w-])-(?=\d)", "$-$", _typeset(text)))  # a minus, not a hyphen
    style = minus.where(~_bold(grid), minus.replace(_FIRST_WORD, r"\\textbf{\1}", regex=True)).style
    for axis, names in ((0, grid.rows), (1, grid.columns)):
        style = style.format_index(_typeset, axis=axis)
        style = style.format_index_names(_typeset, axis=axis) if names else style
    return "% needs \\usepackage{booktabs}\n" + style.to_latex(
        hrules=True,
        column_format="l" * len(grid.rows) + "r" * len(texts.columns),
        multirow_align="naive",  # the first of equal labels, then blanks: no \multirow package
        position_float="centering",
        caption=_typeset(caption(grid)),
        label=f"tab:{_slug(grid.metric)}",
    )


def to_markdown(grid: Grid) -> str:
    """A Markdown table, its columns aligned, and the caption below it."""
    texts = _texts(grid).map(_markdown)
    texts = texts.where(~_bold(grid), texts.replace(_FIRST_WORD, r"**\1**", regex=True))
    sides = texts.index.to_frame(index=False).map(_markdown).to_numpy()
    lines = [[*side, *row] for side, row in zip(sides, texts.to_numpy(), strict=True)]
    head = [_markdown(name) for name in (*grid.rows, *_heads(texts))]
    return _aligned([head, *lines], len(grid.rows)) + f"\n\n{_markdown(caption(grid))}\n"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], sides: int) -> str:
    """Aligned Markdown; the first `sides` columns are labels, flush left, the others numbers."""
    return _aligned([[_markdown(text) for text in line] for line in (head, *lines)], sides)


def _aligned(escaped: list[list[str]], sides: int) -> str:
    widths = [max(3, *(len(text) for text in column)) for column in zip(*escaped, strict=True)]
    escaped.insert(1, ["-" * width if place < sides else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    rows = ("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in escaped)
    return "\n".join(rows)


def write_tables(frame: pd.DataFrame, grid: Grid, folder: Path) -> list[Path]:
    """Write `long.csv`, and the grid as `METRIC.csv`, `.tex` and `.md`; each file is whole or not there."""
    stem = _slug(grid.metric)
    files = {"long.csv": to_long_csv(frame), f"{stem}.csv": to_wide_csv(grid)}
    files |= {f"{stem}.tex": to_latex(grid), f"{stem}.md": to_markdown(grid)}
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _shown(name: str) -> Callable[[Any], str]:
    """What writes one number of a cell."""
    return lambda cell: "--" if math.isnan(getattr(cell, name)) else _LONG_FLOAT % getattr(cell, name)


def _heads(texts: pd.DataFrame) -> list[str]:
    """The column labels, one text each."""
    return [" / ".join(part or "-" for part in top) if isinstance(top, tuple) else top for top in texts.columns]


def _typeset(text: object) -> str:
    escaped = "".join(_LATEX.get(char, char) for char in printable(text))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped  # else an argument of the line break before it


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", printable(text))


def printable(text: object) -> str:
    """One line without control characters: a line break in a name breaks no table, an escape sequence no terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text))


def _slug(name: str) -> str:
    """A metric's name as part of a file name or label."""
    return re.sub(r"[^\w.,-]", "-", name)
