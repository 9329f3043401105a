"""Significance in a table: each cell against the float model, and against the best of its column.

Tests pair the cells by example. Holm's correction is over the table.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sqbench.comparison import MEASURES, POWER, Outcome, holm, shortfall
from sqbench.records.fields import float_basis
from sqbench.records.record import Record
from sqbench.reporting.grid import Grid
from sqbench.reporting.noise import noise_notes
from sqbench.reporting.order import unsure
from sqbench.storage.files import canonical_json

MOST_CELLS = 300  # more would take too long to read and compare
RESAMPLES = 10_000
LEVEL = 0.95  # used where the records have no interval
SIGN_FLIPS = "sign-flip test"
TESTS = {
    "proportion": "exact McNemar test",
    "mean": SIGN_FLIPS,
    "perplexity": SIGN_FLIPS,
    **dict.fromkeys(MEASURES, "paired bootstrap"),
}

Samples = Callable[[str, Sequence[str]], pd.DataFrame | None]  # (point id, columns) -> per-example outcomes, None if missing


@dataclass(frozen=True)
class Side:
    """The values of a cell by example. Several seeds are averaged first, so their spread does not count as sampling error.

    Attributes:
        outcome: how the metric follows from the samples.
        rows: the rows of the examples. Cells can be compared if they have the same examples.
        values, floats: [examples] of the cell and of its float model; of a measure [seeds, examples]. `floats` is None if the
            samples have no such column.
    """

    outcome: Outcome
    rows: pd.DataFrame
    values: NDArray[Any]
    floats: NDArray[Any] | None


def sides_of(grid: Grid, records: Sequence[Record], samples: Samples) -> dict[int, Side]:
    """The quantized cells of a table that have samples, by place. Empty if the table has more than `MOST_CELLS` quantized cells."""
    of_point, ids = _finished(records), grid.cells["ids"].tolist()
    outcomes, measured = _outcomes(grid, of_point), _measured(grid, of_point)
    found = {} if len(measured) > MOST_CELLS else {place: _side(ids[place], outcomes, samples) for place in measured}
    return {place: side for place, side in found.items() if side is not None}


def tested(grid: Grid, records: Sequence[Record], samples: Samples) -> Grid:
    """Return `compared` with the sides read from the samples of the points."""
    return compared(grid, records, sides_of(grid, records, samples))


def compared(grid: Grid, records: Sequence[Record], known: Mapping[int, Side]) -> Grid:
    """The table with `p_holm`, `unclear` and `best` filled in its cells, and notes that explain them.

    A cell is `unclear` if its change against the float model is not significant. An unclear cell is also `untested` if no change
    over so few examples could be significant. A cell of several points gets the interval, the test and the detectable change of
    its mean over seeds.

    A cell is `best` if it is the best quantized cell of its column, or not significantly worse. Only cells with the same float
    model compete. The best cell is chosen on the examples that test it, so it looks better than it is. Too few cells may be bold.

    Args:
        known: the result of `sides_of`: sides by place.
    """
    of_point = _finished(records)
    cells = grid.cells.reset_index(drop=True)
    level = float(cells["level"].max()) if cells["level"].notna().any() else LEVEL
    outcomes, measured = _outcomes(grid, of_point), _measured(grid, of_point)
    many = len(measured) > MOST_CELLS
    cells, changes = _against_float(cells, known, of_point, grid.metric.name, level)
    cells["untested"] = _untested(cells, changes, outcomes, level)
    best, pairs, left_out, split = _against_best(cells, grid, known, measured, of_point, level)
    cells["best"] = best

    test = " and ".join(dict.fromkeys(TESTS[outcome.kind] for outcome in outcomes.values())) or "paired test"
    alpha, holm_over = f"{100 * (1 - level):.4g} %", f"Holm over {_counted(int(cells['p_holm'].notna().sum()), 'change')}"
    notes = []
    not_significant = cells["unclear"] & (cells["untested"] == "")
    if not_significant.any():
        power = f"a change of x would be found with {100 * POWER:.0f} % power"
        notes.append(f"n.s., detectable x: not significant at {alpha} ({test}, {holm_over}); {power}")
    for said in dict.fromkeys(cells["untested"][cells["untested"] != ""]):
        notes.append(f"{said}: no change over so few could be significant at {alpha} ({SIGN_FLIPS}, {holm_over})")
    if (first := _against_its_interval(cells[not_significant], grid, 1 - level)) is not None:
        notes.append(
            f"The interval of {first} excludes 0 and the change is n.s.: an interval is of one change alone, and Holm's correction"
            " allows for all changes of the table"
        )
    if cells["p_holm"].notna().any() and not cells["unclear"].any():
        notes.append(f"Every change is significant at {alpha} ({test}, {holm_over})")
    if best.any():
        by, holm_over_pairs = " and ".join(next(iter(known.values())).outcome.by), f"Holm over {_counted(pairs, 'comparison')}"
        among = " among points with the same float model" * split
        notes.append(f"Bold is not significantly worse than the best of its column{among} ({test} by {by}, {holm_over_pairs})")
    if many and outcomes:
        notes.append(f"{len(measured)} cells are too many to compare with each other; at most {MOST_CELLS} are compared")
    elif left_out and best.any():
        notes.append(f"{left_out} of {len(measured)} cells are not compared with the best: no samples, or of other examples")
    if len(known) > 1 and grid.metric.lower is None:
        notes.append(f"No cell is bold: {unsure(grid.metric)}")
    shown = [of_point[point_id] for ids in cells["ids"] for point_id in ids if point_id]
    kinds = {delta["test"] for record in shown if "test" in (delta := record.delta.get(grid.metric.name, {}))}
    if len(kinds) > 1:
        notes.append("Intervals come from different versions; python -m sqbench.points intervals makes all of them again")
    deltas = [delta for record in shown if (delta := record.delta.get(grid.metric.name, {})).get("held") is not None]
    if deltas:
        notes.append(shortfall(min(deltas, key=lambda delta: int(delta["held"]))))
    notes += noise_notes(shown, grid.metric)
    return replace(grid, cells=cells, notes=tuple(notes))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _finished(records: Sequence[Record]) -> dict[str, Record]:
    return {record.point_id: record for record in records if record.finished}


def _outcomes(grid: Grid, of_point: Mapping[str, Record]) -> dict[str, Outcome]:
    """The outcome of the metric for each point of a table. Points whose record has none are missing."""
    names = {point_id for ids in grid.cells["ids"] for point_id in ids if point_id}
    return {name: outcome for name in names if (outcome := of_point[name].outcome(grid.metric.name)) is not None}


def _measured(grid: Grid, of_point: Mapping[str, Record]) -> list[int]:
    """The places of the cells that hold quantized points."""
    return [place for place, ids in enumerate(grid.cells["ids"]) if ids and _is_quantized(ids, of_point)]


def _is_quantized(ids: Sequence[str], of_point: Mapping[str, Record]) -> bool:
    """Whether a cell is quantized. The float model is the reference and never competes."""
    return bool(ids[0]) and of_point[ids[0]].identity["method"]["name"] != "fp"


def _side(ids: Sequence[str], outcomes: Mapping[str, Outcome], samples: Samples) -> Side | None:
    """The values of a cell by example. None if a point of the cell has no samples, or its points saw different examples."""
    values, floats, first = [], [], None
    for point_id in ids:
        if (outcome := outcomes.get(point_id)) is None:
            return None
        own, floating = outcome.column, f"{outcome.column}_fp"
        table = samples(point_id, [*outcome.columns(), floating])
        table = samples(point_id, outcome.columns()) if table is None else table
        if table is None:
            return None
        rows = outcome.rows(table)
        if first is not None and not (first[0] == outcome and first[1].index.equals(rows.index)):
            return None
        first = first or (outcome, rows)
        values.append(rows[own].to_numpy())
        floats += [rows[name].to_numpy() for name in rows if name == floating]
    assert first is not None
    outcome, rows = first
    return Side(outcome, rows, outcome.over_seeds(values), outcome.over_seeds(floats) if len(floats) == len(values) else None)


def _against_float(
    cells: pd.DataFrame, known: Mapping[int, Side], of_point: Mapping[str, Record], metric: str, level: float
) -> tuple[pd.DataFrame, dict[int, Mapping[str, Any]]]:
    """Test the change of each cell. One point is tested as in its record, several seeds by their mean on each example.

    Returns:
        The cells, and each change in the form of a record.
    """
    changes: dict[int, Mapping[str, Any]] = {}
    for place, ids in enumerate(cells["ids"]):
        if len(ids) == 1 and ids[0]:
            changes[place] = of_point[ids[0]].delta.get(metric, {})
    for place, side in known.items():
        if cells["points"][place] > 1 and side.floats is not None and not np.isnan(cells["delta"][place]):
            found = side.outcome.compare(side.rows, side.values, side.floats, RESAMPLES, level)
            changes[place] = found.as_dict()
            # The mean of perplexities differs slightly from the perplexity of the mean loss. The interval moves to the former.
            low, high = (cells["delta"][place] + bound - found.value for bound in (found.low, found.high))
            cells.loc[place, ["low", "high", "level", "p", "detectable"]] = low, high, level, found.p, found.detectable
    adjusted = pd.Series(holm(cells["p"]), index=cells.index)
    return cells.assign(p_holm=adjusted, unclear=adjusted > 1 - level), changes


def _untested(
    cells: pd.DataFrame, changes: Mapping[int, Mapping[str, Any]], outcomes: Mapping[str, Outcome], level: float
) -> list[str]:
    """A remark for each unclear cell in which the sign-flip test could not find any change, else an empty text.

    With k units that differ, the smallest p-value is 2^(1 - k). It occurs if all change in one direction. A level of 5 % needs six
    such units, and more after Holm.
    """
    said = [""] * len(cells)
    p_values = cells["p"].to_numpy()
    for place in np.flatnonzero(cells["unclear"]).tolist():
        change, outcome = changes.get(place, {}), outcomes.get(cells["ids"][place][0])
        if not change or outcome is None or TESTS[outcome.kind] != SIGN_FLIPS:
            continue
        units = change.get("clusters") or change["n"]
        differing = change.get("differing", units)
        best = p_values.copy()
        best[place] = min(best[place], 2.0 ** (1 - differing))
        if holm(best)[place] > 1 - level:
            noun = "groups" if change.get("clusters") else f"{outcome.by[-1]}s"
            said[place] = f"too few {noun} {'differ ' * (differing < units)}to test"
    return said


def _against_its_interval(cells: pd.DataFrame, grid: Grid, alpha: float) -> str | None:
    """The labels of the first cell whose interval excludes 0 and whose own test is significant. None if there is no such cell."""
    outside = cells[((cells["low"] > 0) | (cells["high"] < 0)) & (cells["p"] <= alpha)]
    if outside.empty:
        return None
    return " ".join(filter(None, (str(outside.iloc[0][name]) for name in (*grid.rows, *grid.columns))))


def _against_best(
    cells: pd.DataFrame,
    grid: Grid,
    known: Mapping[int, Side],
    measured: Sequence[int],
    of_point: Mapping[str, Record],
    level: float,
) -> tuple[NDArray[np.bool_], int, int, bool]:
    """Compare each cell with the best of its column.

    Returns:
        Which cells are bold, how many comparisons were made, how many cells were left out, and whether a column has several float
        models.
    """
    contests: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place in known:
        basis = canonical_json(float_basis(of_point[cells["ids"][place][0]]))
        contests[(*(cells[name][place] for name in grid.columns), basis)].append(place)
    against, bold = {}, np.zeros(len(cells), dtype=bool)
    if (lower := grid.metric.lower) is None:  # no best exists
        return bold, 0, 0, False
    sign = 1 if lower else -1
    left_out = len(measured)
    for places in contests.values():
        rivals = _same_examples(places, known)
        left_out -= len(rivals)
        best = min(rivals, key=lambda place: sign * cells["value"][place])
        bold[best] = len(rivals) > 1
        for place in set(rivals) - {best}:
            one, other = known[place], known[best]
            against[place] = one.outcome.p_value(one.rows, one.values, other.values, RESAMPLES)
    adjusted = holm(list(against.values()))
    bold[list(against)] = adjusted > 1 - level
    columns = [key[:-1] for key in contests]
    return bold, len(against), left_out, len(columns) > len(set(columns))


def _same_examples(places: Sequence[int], known: Mapping[int, Side]) -> list[int]:
    """The largest group of cells over the same examples. Examples differ if one run could not read an image, for instance."""
    groups: list[list[int]] = []
    for place in places:
        side = known[place]
        for group in groups:
            first = known[group[0]]
            if first.outcome == side.outcome and first.rows.index.equals(side.rows.index):
                group.append(place)
                break
        else:
            groups.append([place])
    return max(groups, key=len)
