"""Candidates for deployment: the points of a study with their costs and gains, and the ties among them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sqbench.comparison import SIZE, Difference, Metric, holm
from sqbench.records.fields import SERIES, point_fields
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting.frame import metric_of
from sqbench.reporting.grid import lay_out
from sqbench.reporting.noise import told_most
from sqbench.reporting.order import unsure
from sqbench.reporting.series import apart
from sqbench.reporting.significance import LEVEL, RESAMPLES, Side, compared, sides_of
from sqbench.reporting.studies import Study
from sqbench.reporting.timings import speeds_of, timings
from sqbench.reporting.units import change_text, number

_FAR = 100_000  # examples: a larger number needed counts as out of reach


@dataclass(frozen=True)
class Tie:
    """Another candidate that is not significantly better or worse.

    Attributes:
        at: its place among the candidates.
        needed: the number of examples that would separate both with 80 % power, if the true difference is the measured one. None
            if that is out of reach.
    """

    at: int
    needed: int | None


@dataclass(frozen=True)
class Candidate:
    """A point, or several points that differ only in their seeds.

    Attributes:
        name: method, alpha and the settings that separate it from others of its bit-width.
        value: the metric's value.
        change: the change against the float model as text, with its interval. Empty if it was not compared.
        most: the loss against the float model at the far end of the interval, in the units of tables. Below 0 it is better. It is
            the change itself if there is no interval, and NaN if it was not compared.
        clear: whether the change is significant. None if it was not tested.
        detectable: the change that the test would have found.
        megabytes: size of the weights as stored. NaN if unknown.
        speeds: how many times as fast as the float model, by metric.
        timed: backend and device of the speeds.
        ids: ids of its points.
    """

    name: str
    bits: str
    alpha: str
    value: float
    change: str
    most: float
    clear: bool | None
    detectable: str
    megabytes: float
    speeds: Mapping[str, float]
    timed: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Candidates:
    """The quantized points of a study, with their float model.

    Attributes:
        floating: the float model's value. NaN if unknown.
        float_megabytes: size of the float model's weights. NaN if unknown.
        examples: the number of examples behind the metric, as text with their name. Empty if unknown.
        failed: the number of cells without a finished point.
        notes: sentences about the tests.
    """

    metric: Metric
    floating: float
    float_megabytes: float
    examples: str
    items: tuple[Candidate, ...]
    failed: int
    notes: tuple[str, ...]
    _sides: Mapping[int, Side] = field(repr=False)
    _known: dict[tuple[int, int], Difference] = field(default_factory=dict, repr=False)

    def ties(self, at: int, among: Sequence[int] | None = None) -> tuple[Tie, ...] | None:
        """The candidates that do not differ significantly from one. None if it has no samples.

        The tests pair by example, with Holm's correction over all of them.

        Args:
            among: the places to compare with. None compares with all.
        """
        if (own := self._sides.get(at)) is None:
            return None
        rivals = [place for place in (range(len(self.items)) if among is None else among) if place != at]
        found = {}
        for place in rivals:
            other = self._sides.get(place)
            if other is not None and other.outcome == own.outcome and other.rows.index.equals(own.rows.index):
                found[place] = self._difference(*sorted((at, place)))
        adjusted = holm([difference.p for difference in found.values()])
        return tuple(
            Tie(place, _needed(difference.units, difference.detectable, difference.value))
            for (place, difference), p in zip(found.items(), adjusted, strict=True)
            if not p <= 1 - LEVEL
        )

    def _difference(self, one: int, other: int) -> Difference:
        """The difference between two candidates over the same examples, computed once."""
        if (one, other) not in self._known:
            side = self._sides[one]
            self._known[one, other] = side.outcome.compare(side.rows, side.values, self._sides[other].values, RESAMPLES, LEVEL)
        return self._known[one, other]


def candidates(
    study: Study,
    frame: pd.DataFrame,
    records: Mapping[str, Record],
    store: Store,
    name: str,
    device: str | None = None,
) -> Candidates:
    """The finished quantized points of a study.

    Args:
        name: the metric.
        frame: the long frame of the results folder. Points with eval=latency are looked up in it.
        records: the records of its points, by id.
        device: the device whose speeds count. None counts every device.

    Raises:
        UserError: no point has the metric, or it is unknown which way is better.
    """
    metric = metric_of(frame, name)
    if (lower := metric.lower) is None:
        raise unsure(metric)
    told = told_most(list(records.values()))  # a point that ran with noise too is one candidate
    rows = study.frame[study.frame["point_id"].isin({"", *(record.point_id for record in told)})]
    grid = lay_out(rows, SERIES, (), name)
    known = sides_of(grid, told, store.samples)
    grid = compared(grid, told, known)
    cells = grid.cells.assign(apart=apart(grid.cells, grid.added))
    floats = cells[(cells["method"] == "fp") & cells["delta"].isna() & (cells["points"] > 0)]
    quantized = cells[cells["method"] != "fp"]
    done = quantized[quantized["points"] > 0]
    stored = rows[rows["metric"] == SIZE.name].assign(megabytes=lambda sized: sized["value"] / SIZE.scale)
    sizes = dict(zip(stored["point_id"], stored["megabytes"], strict=True))
    timed = timings(frame, study, device)
    sign = 1 if lower else -1
    items, sides, by = [], {}, ""
    for at, (place, cell) in enumerate(zip(done.index, done.itertuples(index=False), strict=True)):
        speeds, how = speeds_of(timed, point_fields(records[cell.ids[0]]))
        worst = cell.delta if math.isnan(cell.low) else cell.high if lower else cell.low
        change = "" if math.isnan(cell.delta) else change_text(cell.delta, cell.low, cell.high, metric)
        clear = None if math.isnan(cell.p_holm) else not cell.unclear
        detectable = "" if math.isnan(cell.detectable) else number(cell.detectable, metric, extra=1)
        size = [sizes[one] for one in cell.ids if one in sizes]
        items.append(
            Candidate(
                name_of(cell),
                cell.bits,
                cell.alpha,
                float(cell.value),
                change,
                sign * worst / metric.scale,
                clear,
                detectable,
                sum(size) / len(size) if size else math.nan,
                speeds,
                how,
                tuple(one for one in cell.ids if one),
            )
        )
        if place in known:
            sides[at] = known[place]
            by = known[place].outcome.by[-1]
    counts = sorted({int(count) for count in done["n"].dropna()})
    noun = by if by.endswith("s") else f"{by or 'example'}s"
    return Candidates(
        metric,
        float(floats["value"].iloc[0]) if len(floats) else math.nan,
        float(stored["megabytes"][stored["method"] == "fp"].max()),
        f"{counts[0]:,} {noun}" if len(counts) == 1 else "",
        tuple(items),
        len(quantized) - len(done),
        grid.notes,
        sides,
    )


def name_of(cell: Any) -> str:
    """Method and alpha (`smoothquant α=0.5`), and the settings that separate the cell from others (its `apart`)."""
    return " ".join(
        [cell.method, *([f"α={cell.alpha}"] if cell.alpha else []), *([cell.apart.replace("variant=", "")] if cell.apart else [])]
    )


def _needed(units: int, detectable: float, value: float) -> int | None:
    """The number of examples that would make a difference of this size detectable. None if it is out of reach.

    The error of a mean falls with the square root of their number.
    """
    if math.isnan(detectable) or value == 0:
        return None
    count = units * (detectable / abs(value)) ** 2
    return max(units + 1, math.ceil(count)) if count < _FAR else None
