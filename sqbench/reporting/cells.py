"""The texts of table cells and captions, the same words in every format."""

import math
from typing import Any

import pandas as pd

from sqbench.comparison import Metric
from sqbench.reporting.grid import Grid, wide
from sqbench.reporting.units import change_text, extra_decimals, number

VALUE = r"^(\S+)"  # the first word of a cell, which may be bold


def value_text(cell: Any, metric: Metric) -> str:
    """The value of a cell: `15.10`, `15.10 ± 0.05` for several seeds, or `fail`."""
    if cell.points == 0:
        return "fail"
    return number(cell.value, metric) + f" ± {number(cell.seed_std, metric)}" * (cell.points > 1)


def note_text(cell: Any, metric: Metric, *, with_n: bool = False) -> str:
    """The note of a cell: `3 seeds, +0.240 [0.200, 0.280]`, `-0.30 [-0.80, 0.20], n.s., detectable 0.60`, or `1 failed`.

    A speed has `x1.56 [1.39, 1.72], float 365.4`. Empty if there is nothing to add.
    """
    if cell.points == 0:
        return ""
    notes = [f"{cell.points} seeds"] * (cell.points > 1) + [f"{cell.failed} failed"] * (cell.failed > 0)
    if not math.isnan(cell.delta):
        notes.append(change_text(cell.delta, cell.low, cell.high, metric))
    if not math.isnan(cell.float):
        notes.append(f"float {number(cell.float, metric)}")
    if cell.untested:
        notes.append(cell.untested)
    elif cell.unclear:
        notes.append(f"n.s., detectable {number(cell.detectable, metric, extra=extra_decimals(cell.delta, metric))}")
    notes += [f"n={cell.n:.0f}"] * (with_n and not math.isnan(cell.n))
    return ", ".join(notes)


def cell_text(cell: Any, metric: Metric, *, with_n: bool = False) -> str:
    """Value and note of a cell: `15.10 (+0.240 [0.200, 0.400])`, `15.10 ± 0.05 (3 seeds, +0.240)`, `fail`, or a mean with failures.

    A change that is not significant is `n.s.`, with the change that the test would detect. If no change at all could be
    significant, the cell says that instead.
    """
    note = note_text(cell, metric, with_n=with_n)
    return value_text(cell, metric) + f" ({note})" * bool(note)


def title(grid: Grid) -> str:
    """The title of a table: its metric, rows and columns."""
    unit = grid.metric.unit
    across = f" and {', '.join(grid.columns)} (across)" * bool(grid.columns)
    return f"{grid.metric.name}{f' ({unit})' * bool(unit)} by {', '.join(grid.rows)}" + " (down)" * bool(across) + across


def remarks(grid: Grid, place: str = "In brackets") -> list[str]:
    """Sentences on the shared fields and on how to read a cell. `place` says where the change is. The last explains blanks."""
    cells, parts = grid.cells, []
    if grid.context:
        parts.append("All with " + ", ".join(f"{name} {value}" for name, value in grid.context.items()))
    if grid.added:
        parts.append(f"Split by {', '.join(grid.added)}, so that no cell mixes them")
    if cells["delta"].notna().any():
        levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(cells["level"][cells["low"].notna()])))
        change = "how many times as fast as the float model" if grid.metric.speed else "the change against the float model"
        parts.append(f"{place} {change}" + f" [and its {levels} interval]" * bool(levels))
    if cells["float"].notna().any():
        parts.append("float is the speed of that float model, which took turns with the point; a factor is the median over turns")
    if (cells["points"] > 1).any():
        parts.append("± is the standard deviation over seeds")
    if (cells["low"].notna() & (cells["points"] > 1)).any():
        parts.append("Beside ± the interval is of the mean over seeds: what other examples could change")
    counts = set(cells["n"].dropna())
    if len(counts) == 1:
        parts.append(f"n = {counts.pop():.0f} examples")
    return [*parts, *grid.notes, "-- was not run, fail did not finish"]


def caption(grid: Grid) -> str:
    """Title and remarks in one paragraph."""
    return ". ".join([title(grid), *remarks(grid)]) + "."


def counts_vary(grid: Grid) -> bool:
    """Whether n differs between cells. Each cell then shows its own n."""
    return bool(grid.cells["n"].nunique() > 1)


def texts(grid: Grid) -> pd.DataFrame:
    """The cells as texts for readers."""
    return wide(grid, lambda cell: cell_text(cell, grid.metric, with_n=counts_vary(grid)))


def emboldened(cells: pd.DataFrame, grid: Grid, form: str) -> pd.DataFrame:
    """The texts of the cells, with `form` around the values of the best cells. `\\1` in `form` is the value."""
    best = wide(grid, lambda cell: "best" if cell.best else "") == "best"
    return cells.where(~best, cells.replace(VALUE, form, regex=True))


def printable(text: object) -> str:
    """The text as one line without control characters. Names can then break neither a table nor a terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text))
