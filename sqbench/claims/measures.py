"""What a claim may measure on finished points: effects with intervals, from records and the samples beside them."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sqbench.comparison import Outcome, mean_difference, over_seeds
from sqbench.errors import UserError, known
from sqbench.evaluation import EVALUATIONS
from sqbench.evaluation.latency import FIGURES

Values = NDArray[np.float64]
SEED, RESAMPLES, LEVEL = 20260401, 10_000, 0.95
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Effect:
    """What was measured, in fractions, dB, seconds or times.

    Attributes:
        value: the effect.
        low, high: its interval; both are the value of something that is counted rather than estimated.
        n: examples, layers or repetitions behind it.
        how: the test, in a few words.
        spread: standard deviation over seeds; None for one point.
    """

    value: float
    low: float
    high: float
    n: int
    how: str
    spread: float | None = None


@dataclass(frozen=True)
class Side:
    """One or several finished points (its seeds) and their per-example outcomes."""

    records: Sequence[dict[str, Any]]
    samples: Sequence[pd.DataFrame]


@dataclass(frozen=True)
class Measure:
    """A way to measure: the options it takes, and (side, other side or None, **options) -> effect."""

    options: frozenset[str]
    run: Callable[..., Effect]


def change(of: Side, against: Side | None, *, metric: str) -> Effect:
    """Relative change of a perplexity, difference of a share or of any other mean over examples, paired by example.

    Against the float model's outcomes on the same examples, or against another side's. The values of several seeds are averaged by
    example first: the interval is that of sampling examples, and `spread` is that of the seeds.

    Raises:
        UserError: the evaluation has no such metric, or the sides saw different examples.
    """
    outcome = _outcome(of, metric)
    rows = [outcome.rows(samples) for samples in of.samples]
    others = rows if against is None else [outcome.rows(samples) for samples in against.samples]
    if any(not own.index.equals(rows[0].index) for own in (*rows, *others)):
        raise UserError(f"metric={metric}: the two sides saw different examples, which cannot be paired")
    values = over_seeds([own[outcome.column].to_numpy() for own in rows])
    other = over_seeds([one[outcome.column if against is not None else f"{outcome.column}_fp"].to_numpy() for one in others])
    weights = None if outcome.weights is None else rows[0][outcome.weights].to_numpy()
    each = np.array([np.average(own[outcome.column] - other.astype(float), weights=weights) for own in rows])
    if outcome.kind == "perplexity":  # of logarithms: a ratio afterwards
        clusters = None if outcome.clusters is None else rows[0][outcome.clusters].to_numpy()
        found = mean_difference(values, other, weights=weights, clusters=clusters)
        (value, low, high), each = np.expm1([found.value, found.low, found.high]).tolist(), np.expm1(each)
    else:
        found = outcome.compare(rows[0], values, other, RESAMPLES, LEVEL)
        value, low, high = found.value, found.low, found.high
    return Effect(value, low, high, found.n, found.test, float(np.std(each, ddof=1)) if len(each) > 1 else None)


def _outcome(side: Side, metric: str) -> Outcome:
    names = {record["identity"]["eval"]["name"] for record in side.records}
    outcomes = EVALUATIONS[names.pop()].outcomes(side.samples[0])
    if metric not in outcomes:
        raise UserError(f"metric={metric}: {known(metric, outcomes)}")
    return outcomes[metric]


def number(of: Side, against: Side | None, *, path: str) -> Effect:
    """A number of the record (`cost.seconds.quantize`, `quantized.gradient_steps`), or how many times the other side's it is."""
    own = [_at(record, path) for record in of.records]
    other = [1.0] if against is None else [_at(record, path) for record in against.records]
    value = float(np.mean(own) / np.mean(other))
    spread = float(np.std(own, ddof=1) / np.mean(other)) if len(own) > 1 else None
    return Effect(value, value, value, len(own), "as recorded", spread)


def _at(record: Mapping[str, Any], path: str) -> float:
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            names = value if isinstance(value, Mapping) else ()
            raise UserError(f"path={path}: {known(part, names)}")
        value = value[part]
    return float(value)


def layers(of: Side, against: Side | None, *, field: str, statistic: str = "median", where: str = "*") -> Effect:
    """A number per layer (`ratio`, `weight_sqnr_db`), or its difference from the other side's layer by layer, over all layers.

    The interval of a median is a bootstrap over layers; a maximum is what it is.
    """
    values = [_per_layer(record, field, where) for record in of.records]
    common = set.intersection(*map(set, values))
    own = {name: float(np.mean([one[name] for one in values])) for name in common}
    if against is not None:
        other = _per_layer(against.records[0], field, where)
        own = {name: value - other[name] for name, value in own.items() if name in other}
    if not own:
        raise UserError(f"field={field} where={where}: no layer of {of.records[0]['config']['model']['name']} has it")
    numbers = np.array([own[name] for name in sorted(own)])
    if statistic == "max":
        value = float(numbers.max())
        return Effect(value, value, value, len(numbers), "largest over layers")
    if statistic != "median":
        raise UserError(f"statistic={statistic}: must be median or max")
    return _bootstrap(numbers, np.median, "bootstrap over layers")


def _per_layer(record: dict[str, Any], field: str, where: str) -> dict[str, float]:
    rows = record["quantized"]["per_layer"]
    return {row["layer"]: row[field] for row in rows if field in row and fnmatch.fnmatch(row["layer"], where)}


def speed(of: Side, against: Side | None, *, metric: str) -> Effect:
    """How many times as fast as float32 in the same minutes (`eval=latency`); against another side, the quotient of the two."""
    columns = {name: stage for figures in FIGURES.values() for name, (stage, _) in figures.items()}
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
