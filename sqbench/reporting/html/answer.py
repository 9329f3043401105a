"""The answer first: of every bit-width the best method with its interval, and which others are not significantly worse."""

import math
from dataclasses import dataclass
from typing import Any

from sqbench.records.store import Store
from sqbench.reporting.candidates import name_of
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.html.results import Results
from sqbench.reporting.html.text import named_metric
from sqbench.reporting.order import in_order, lower_is_better, unsure
from sqbench.reporting.series import apart
from sqbench.reporting.significance import tested
from sqbench.reporting.studies import Study
from sqbench.reporting.units import change_text, number


@dataclass(frozen=True)
class Best:
    """The best cell of a bit-width.

    Attributes:
        change: against the float model, with its interval; empty if it was not compared.
        note: what the test against the float model could not see.
        points: ids behind it.
        beside: the others that are not significantly worse.
        tried, failed: cells of this bit-width.
    """

    bits: str
    name: str
    value: str
    change: str
    note: str
    points: tuple[str, ...]
    beside: tuple[str, ...]
    tried: int
    failed: int


@dataclass(frozen=True)
class Answer:
    """The best of every bit-width of a study, from wide to narrow.

    Attributes:
        metric: with its unit.
        floating: the float model's value, empty if unknown.
        notes: of the tests.
        unranked: why there is no best, though there are points.
    """

    metric: str
    floating: str
    best: tuple[Best, ...]
    notes: tuple[str, ...]
    unranked: str = ""


def answer(results: Results, study: Study) -> Answer:
    """Compare a study's points with each other by example, column by column.

    Raises:
        UserError: the study has no result.
    """
    grid = lay_out(study.frame, ("method", "alpha"), ("bits",), study.metric)
    grid = tested(grid, list(results.records.values()), Store(results.folder).samples)
    floats = grid.cells[(grid.cells["method"] == "fp") & (grid.cells["points"] > 0)]["value"].tolist()
    named, floating = named_metric(study.metric), number(floats[0], study.metric) if floats else ""
    if (lower := lower_is_better(study.metric)) is None:
        return Answer(named, floating, (), (), f"There is no best: {unsure(study.metric)}.")
    sign = 1.0 if lower else -1.0
    found = []
    measured = grid.cells[grid.cells["method"] != "fp"]
    measured = in_order(measured.assign(apart=apart(measured, grid.added)), ("bits",))
    for bits, cells in measured.groupby("bits", sort=False):
        done = [cell for cell in cells.itertuples(index=False) if cell.points]
        if done:
            best = min(done, key=lambda cell: sign * cell.value)
            beside = tuple(name_of(cell) for cell in done if cell.best and cell is not best)
            found.append(_best(bits, best, grid, beside, len(cells), len(cells) - len(done)))
    return Answer(named, floating, tuple(found), grid.notes)


def _best(bits: str, cell: Any, grid: Grid, beside: tuple[str, ...], tried: int, failed: int) -> Best:
    change = "" if math.isnan(cell.delta) else change_text(cell.delta, cell.low, cell.high, grid.metric)
    note = f"n.s., detectable {number(cell.detectable, grid.metric, extra=1)}" if cell.unclear else ""
    return Best(bits, name_of(cell), number(cell.value, grid.metric), change, note, cell.ids, beside, tried, failed)
