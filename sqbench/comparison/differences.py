"""Paired differences between two models that saw the same examples: value, interval, test, and what the test could have found.

Everything is symmetric: swapping the models negates the difference and keeps its p-value, and the order of examples has no say.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri, stdtrit

from sqbench.comparison.resampling import BOOTSTRAP_SEED, Array, Statistic, sign_flips, studentized

FEW = 30  # examples: below, an interval rests on too little to be trusted to a percent, and readers are told
POWER = 0.8
NAN = float("nan")


@dataclass(frozen=True)
class Difference:
    """A paired difference, its confidence interval and its test.

    Attributes:
        value: the difference, model minus float; of a speed-up, how many times as fast as float.
        low, high: bounds of the interval; NaN with fewer than two independent examples.
        level: its coverage, 0.95 for example.
        n: examples.
        test: how interval and p-value were made.
        p: two-sided p-value of no difference; NaN where there is no test.
        detectable: the size of a difference that this many examples with this spread find with 80 % power, tested at 1 - level.
        clusters: groups of examples that share something and count as one each; None where all stand for themselves.
        gained, lost: of right and wrong answers: how many examples only this model, and only the float model, has right.
        flip_rate: their share of the examples.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    test: str
    p: float = NAN
    detectable: float = NAN
    clusters: int | None = None
    gained: int | None = None
    lost: int | None = None
    flip_rate: float | None = None

    @property
    def units(self) -> int:
        """How many independent things it rests on."""
        return self.n if self.clusters is None else self.clusters

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record: numbers that do not exist are None, and what this kind of difference has not is left out."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in known.items()}


def proportion_difference(
    correct: NDArray[np.bool_],
    correct_fp: NDArray[np.bool_],
    *,
    clusters: NDArray[Any] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """Share of correct examples, model minus float: exact McNemar test, adjusted Wald interval (Bonett & Price 2012).

    The interval adds one flip to either side, which keeps its coverage with few flips, where a bootstrap knows only those it saw
    (none at all: an interval of width 0), and hardly ever disagrees with the exact test.

    Args:
        correct, correct_fp: [examples] whether each was right.
        clusters: [examples] what each shares with others, a passage for example: then as `mean_difference`, by cluster.
    """
    assert correct.shape == correct_fp.shape
    assert correct.ndim == 1
    count = len(correct)
    gained, lost = int((correct & ~correct_fp).sum()), int((~correct & correct_fp).sum())
    flips: dict[str, Any] = {"gained": gained, "lost": lost, "flip_rate": (gained + lost) / count}
    if clusters is not None and len(np.unique(clusters)) < count:
        found = mean_difference(correct, correct_fp, clusters=clusters, resamples=resamples, level=level)
        return Difference(**{**asdict(found), **flips})
    value, test, p = (gained - lost) / count, "exact McNemar test, Bonett-Price interval", mcnemar(gained, lost)
    if count < 2:
        return Difference(value, NAN, NAN, level, count, test, p, **flips)
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    error = float(np.sqrt((up + down - (up - down) ** 2) / (count + 2)))
    reach = float(ndtri((1 + level) / 2)) * error
    low, high = max(up - down - reach, -1.0), min(up - down + reach, 1.0)
    return Difference(value, low, high, level, count, test, p, minimum_detectable(error, level), **flips)


def mean_difference(
    values: ArrayLike,
    values_fp: ArrayLike,
    *,
    clusters: NDArray[Any] | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """Mean of a number per example, model minus float: sign-flip test and bootstrap-t interval over examples, or clusters of them.

    Args:
        values, values_fp: [examples].
        clusters: [examples] what each shares with others; whole clusters are then drawn and flipped.
        weights: [examples] of the mean; all the same by default.
    """

    def statistic(center: float, change: float) -> Statistic:
        return lambda a, b: (change + a, np.ones_like(a), np.zeros_like(b))

    return _over_units(values, values_fp, weights, clusters, statistic, resamples, level)


def perplexity_difference(
    nll: ArrayLike,
    nll_fp: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    clusters: NDArray[Any] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """exp(mean nll) - exp(mean nll_fp): sign-flip test and bootstrap-t interval over windows or documents, or clusters of them.

    Over 16 windows a percentile bootstrap at 95 % covers 91 % (BCa 91 %), the bootstrap-t 95 %
    (`tests/comparison/test_simulation.py`).

    Args:
        nll, nll_fp: [windows] mean negative log-likelihood per token.
        weights: [windows] tokens; all the same by default.
    """

    def statistic(center: float, change: float) -> Statistic:
        def perplexities(a: Array, b: Array) -> tuple[Array, Array, Array]:
            base = np.exp(center + b)
            value = base * np.expm1(change + a)
            return value, base + value, value

        return perplexities

    return _over_units(nll, nll_fp, weights, clusters, statistic, resamples, level)


def speedup(
    seconds: Array,
    seconds_fp: Array,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """How many times as fast as float: the median of seconds_fp / seconds, with a percentile bootstrap interval over repetitions.

    The ratio is taken inside each repetition, where both ran one after the other: what slows the machine down for longer cancels.

    Args:
        seconds, seconds_fp: [repetitions] positive.
    """
    assert seconds.shape == seconds_fp.shape
    assert seconds.ndim == 1
    ratios = seconds_fp / seconds
    count, value, test = len(ratios), float(np.median(ratios)), "paired bootstrap over repetitions"
    if count < 2:
        return Difference(value, NAN, NAN, level, count, test)
    draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Difference(value, float(low), float(high), level, count, test)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of flips from wrong to right and from right to wrong: they are as likely as heads and tails."""
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def by_unit(columns: Sequence[Array], clusters: NDArray[Any] | None) -> Array:
    """Columns [examples] side by side, summed over each cluster where examples share one: [units, columns]."""
    if clusters is None:
        return np.stack(columns, axis=1)
    _, at = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(at, weights=column) for column in columns], axis=1)


def minimum_detectable(error: float, level: float, units: int | None = None, power: float = POWER) -> float:
    """The size of a difference that a two-sided test at 1 - level finds with this power.

    Args:
        error: standard error of the difference.
        units: independent examples that it was estimated from; None if many.
    """
    quantiles = (1 + level) / 2, power
    return error * float(sum(ndtri(share) if units is None else stdtrit(units - 1, share) for share in quantiles))


def holm(p_values: ArrayLike) -> Array:
    """p-values of several tests of one table, adjusted so that any false positive at all has the chance alpha (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below the one before. NaN, no test, stays NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sorts last
    adjusted = np.full(len(p), NAN)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def _over_units(
    values: ArrayLike,
    values_fp: ArrayLike,
    weights: ArrayLike | None,
    clusters: NDArray[Any] | None,
    statistic: Any,
    resamples: int,
    level: float,
) -> Difference:
    """A difference of a function of two weighted means, over independent units: examples, or clusters of them.

    Args:
        statistic: (mean of the float model, mean change) -> their function, of what is added to the change and to the mean.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(values_fp, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    assert x.shape == y.shape == w.shape
    assert x.ndim == 1
    center, change = float((w * y).sum() / w.sum()), float((w * (x - y)).sum() / w.sum())
    function = statistic(center, change)
    value = float(function(np.zeros(1), np.zeros(1))[0][0])
    # Both are centred, so that nothing cancels in the spread of models that hardly differ.
    units = by_unit([w * (x - y - change), w * (y - center), w, w * (x - y), w * (x + y)], clusters)
    shared = None if len(units) == len(x) else len(units)
    test = "sign-flip test, bootstrap-t interval"
    p = sign_flips(units[:, 3], resamples)
    if len(units) < 2:
        return Difference(value, NAN, NAN, level, len(x), test, p, clusters=shared)
    order = np.lexsort((units[:, 3], units[:, 2], units[:, 4], np.abs(units[:, 3])))  # the same with the models swapped
    low, high, error = studentized(units[order, :3], function, level, resamples)
    return Difference(value, low, high, level, len(x), test, p, minimum_detectable(error, level, len(units)), clusters=shared)
