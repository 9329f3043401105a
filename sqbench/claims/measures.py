"""The measures of claims: effects with intervals on finished points, from records and their samples."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sqbench.comparison import Outcome, mean_difference
from sqbench.errors import UserError, known
from sqbench.records.record import Record

Values = NDArray[np.float64]
SEED, RESAMPLES, LEVEL = 20260401, 10_000, 0.95
_NUMBERS = ("metrics", "baseline", "delta", "share", "quantized", "noise", "cost")  # the parts of a record that hold numbers
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Effect:
    """A measured effect: a fraction, dB, seconds or a factor.

    Attributes:
        value: the effect.
        low, high: its interval. Both equal the value if it is counted, not estimated.
        n: the number of examples, layers or repetitions behind it.
        how: the test, in a few words.
        spread: standard deviation over seeds. None for one point.
    """

    value: float
    low: float
    high: float
    n: int
    how: str
    spread: float | None = None


@dataclass(frozen=True)
class Side:
    """A finished point, or one point per seed, with their per-example outcomes."""

    records: Sequence[Record]
    samples: Sequence[pd.DataFrame]


@dataclass(frozen=True)
class Measure:
    """A way to measure: its options, and the function (side, other side or None, **options) -> effect."""

    options: frozenset[str]
    run: Callable[..., Effect]


def change(of: Side, against: Side | None, *, metric: str) -> Effect:
    """The relative change of a perplexity, or the difference of a share or of another mean over examples, paired by example.

    The reference is the float model on the same examples, or the other side. Several seeds are averaged by example first. The
    interval thus covers the sampling of examples, and `spread` covers the seeds.

    Raises:
        UserError: the evaluation has no such metric, or the sides saw different examples.
    """
    outcome = _outcome(of, metric)
    rows = [outcome.rows(samples) for samples in of.samples]
    others = rows if against is None else [outcome.rows(samples) for samples in against.samples]
    if any(not own.index.equals(rows[0].index) for own in (*rows, *others)):
        raise UserError(f"metric={metric}: the two sides saw different examples, which cannot be paired")
    values = outcome.over_seeds([own[outcome.column].to_numpy() for own in rows])
    other = outcome.over_seeds(
        [one[outcome.column if against is not None else f"{outcome.column}_fp"].to_numpy() for one in others]
    )
    weights = None if outcome.weights is None else rows[0][outcome.weights].to_numpy()
    if outcome.averages:
        each = np.array([np.average(own[outcome.column] - other.astype(float), weights=weights) for own in rows])
    else:
        each = np.array([outcome.value(own) for own in rows])
    if outcome.kind == "perplexity":  # the difference of logarithms becomes a ratio
        clusters = None if outcome.clusters is None else rows[0][outcome.clusters].to_numpy()
        found = mean_difference(values, other, weights=weights, clusters=clusters)
        (value, low, high), each = np.expm1([found.value, found.low, found.high]).tolist(), np.expm1(each)
    else:
        found = outcome.compare(rows[0], values, other, RESAMPLES, LEVEL)
        value, low, high = found.value, found.low, found.high
    return Effect(value, low, high, found.n, found.test, float(np.std(each, ddof=1)) if len(each) > 1 else None)


def _outcome(side: Side, metric: str) -> Outcome:
    declared = side.records[0].declared
    outcomes = {name: one.outcome for name, one in declared.items() if one.outcome is not None}
    if metric not in outcomes:
        raise UserError(f"metric={metric}: {known(metric, outcomes)}")
    return outcomes[metric]


def number(of: Side, against: Side | None, *, path: str) -> Effect:
    """A number of the record (`cost.seconds.quantize`, `quantized.gradient_steps`), or its ratio to the other side's."""
    own = [_at(record, path) for record in of.records]
    other = [1.0] if against is None else [_at(record, path) for record in against.records]
    value = float(np.mean(own) / np.mean(other))
    spread = float(np.std(own, ddof=1) / np.mean(other)) if len(own) > 1 else None
    return Effect(value, value, value, len(own), "as recorded", spread)


def _at(record: Record, path: str) -> float:
    value: Any = {name: getattr(record, name) for name in _NUMBERS}
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            names = value if isinstance(value, Mapping) else ()
            raise UserError(f"path={path}: {known(part, names)}")
        value = value[part]
    return float(value)


def layers(of: Side, against: Side | None, *, field: str, statistic: str = "median", where: str = "*") -> Effect:
    """Median or maximum over layers of a number (`ratio`, `weight_sqnr_db`), or of its difference from the other side's.

    Differences are taken layer by layer. A median has a bootstrap interval over layers. A maximum has no interval.
    """
    values = [_per_layer(record, field, where) for record in of.records]
    common = set.intersection(*map(set, values))
    own = {name: float(np.mean([one[name] for one in values])) for name in common}
    if against is not None:
        other = _per_layer(against.records[0], field, where)
        own = {name: value - other[name] for name, value in own.items() if name in other}
    if not own:
        raise UserError(f"field={field} where={where}: no layer of {of.records[0].config['model']['name']} has it")
    numbers = np.array([own[name] for name in sorted(own)])
    if statistic == "max":
        value = float(numbers.max())
        return Effect(value, value, value, len(numbers), "largest over layers")
    if statistic != "median":
        raise UserError(f"statistic={statistic}: must be median or max")
    return _bootstrap(numbers, np.median, "bootstrap over layers")


def _per_layer(record: Record, field: str, where: str) -> dict[str, float]:
    rows = record.quantized["per_layer"]
    return {row["layer"]: row[field] for row in rows if field in row and fnmatch.fnmatch(row["layer"], where)}


def speed(of: Side, against: Side | None, *, metric: str) -> Effect:
    """The speed as a multiple of the float32 model timed in turns (`eval=latency`). Against another side, the ratio of both."""
    columns = {name: one.timed for name, one in of.records[0].declared.items() if one.speed}
    if metric not in columns:
        raise UserError(f"metric={metric}: {known(metric, columns)}")
    column = columns[metric]

    def ratios(side: Side) -> Values:
        (samples,) = side.samples
        return samples[f"{column}_fp"].to_numpy(dtype=float) / samples[column].to_numpy(dtype=float)

    if against is None:
        return _bootstrap(ratios(of), np.median, "paired bootstrap over repetitions")
    generator = np.random.default_rng(SEED)
    own, other = ratios(of), ratios(against)
    draws = [np.median(side[generator.integers(0, len(side), (RESAMPLES, len(side)))], axis=1) for side in (own, other)]
    low, high = np.quantile(draws[0] / draws[1], _ENDS)
    value = float(np.median(own) / np.median(other))
    return Effect(value, float(low), float(high), len(own), "bootstrap over repetitions of both")


def _bootstrap(values: Values, statistic: Callable[..., Any], how: str) -> Effect:
    """A statistic with its percentile bootstrap interval at 95 %."""
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(statistic(values[draws], axis=1), _ENDS)
    return Effect(float(statistic(values)), float(low), float(high), len(values), how)


MEASURES = {
    "change": Measure(frozenset({"metric"}), change),
    "number": Measure(frozenset({"path"}), number),
    "layers": Measure(frozenset({"field", "statistic", "where"}), layers),
    "speed": Measure(frozenset({"metric"}), speed),
}
