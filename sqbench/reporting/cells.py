"""What the cells of a table say, and what its caption says of them: the same words in every format."""

import math
from typing import Any

import pandas as pd

from sqbench.reporting.grid import Grid, wide
from sqbench.reporting.units import SPEEDS, change_text, extra_decimals, number, unit_of

VALUE = r"^(\S+)"  # the first word of a cell, which is bold or not


def value_text(cell: Any, metric: str) -> str:
    """`15.10`, `15.10 ± 0.05` of several seeds, or `fail`."""
    if cell.points == 0:
        return "fail"
    return number(cell.value, metric) + f" ± {number(cell.seed_std, metric)}" * (cell.points > 1)


def note_text(cell: Any, metric: str, *, with_n: bool = False) -> str:
    """`3 seeds, +0.240 [0.200, 0.280]`, `-0.30 [-0.80, 0.20], n.s., detectable 0.60`, or that some runs failed.

    Of a speed `x1.56 [1.39, 1.72], float 365.4`. Empty if nothing is to be said.
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


def cell_text(cell: Any, metric: str, *, with_n: bool = False) -> str:
    """`15.10 (+0.240 [0.200, 0.400])`, `15.10 ± 0.05 (3 seeds, +0.240)`, `fail`, or a mean that says how many runs failed.

    A change that is not significant is `n.s.`, and the cell says which would have been detected. Where no change at all could have
    been significant, it says so instead.
    """
    note = note_text(cell, metric, with_n=with_n)
    return value_text(cell, metric) + f" ({note})" * bool(note)


def title(grid: Grid) -> str:
    """What the table shows."""
    unit = unit_of(grid.metric)[1]
    across = f" and {', '.join(grid.columns)} (across)" * bool(grid.columns)
    return f"{grid.metric}{f' ({unit})' * bool(unit)} by {', '.join(grid.rows)}" + " (down)" * bool(across) + across


def remarks(grid: Grid, place: str = "In brackets") -> list[str]:
    """What all results share, and how to read a cell: the change stands at `place`. The last is what stands for no value."""
    cells, parts = grid.cells, []
    if grid.context:
        parts.append("All with " + ", ".join(f"{name} {value}" for name, value in grid.context.items()))
    if grid.added:
        parts.append(f"Split by {', '.join(grid.added)}, so that no cell mixes them")
    if cells["delta"].notna().any():
        levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(cells["level"][cells["low"].notna()])))
        change = "how many times as fast as the float model" if grid.metric in SPEEDS else "the change against the float model"
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
    """Whether each cell has to say its n, because the caption cannot."""
    return bool(grid.cells["n"].nunique() > 1)


def texts(grid: Grid) -> pd.DataFrame:
    """The cells as people read them."""
    return wide(grid, lambda cell: cell_text(cell, grid.metric, with_n=counts_vary(grid)))


def emboldened(cells: pd.DataFrame, grid: Grid, form: str) -> pd.DataFrame:
    """The cells' texts, the values of the best as `form` has them: `\\1` is the value."""
    best = wide(grid, lambda cell: "best" if cell.best else "") == "best"
    return cells.where(~best, cells.replace(VALUE, form, regex=True))


def printable(text: object) -> str:
    """One line without control characters: a line break in a name breaks no table, an escape sequence no terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text))
