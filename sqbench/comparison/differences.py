"""Paired differences between two models that saw the same examples: value, interval, test, and what the test could have found.

Everything is symmetric: swapping the models negates the difference and keeps its p-value, and the order of examples has no say.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from sqbench.comparison.resampling import BOOTSTRAP_SEED, Array, Statistic, by_unit, sign_flips, studentized
from sqbench.comparison.significance import mcnemar, minimum_detectable

FEW = 30  # examples: below, an interval rests on too little to be trusted to a percent, and readers are told
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

    Over 16 windows an interval of 95 % holds the true change in 91 % of simulated comparisons by percentiles or BCa, in 95 % by
    bootstrap-t; without a change 4 to 5 % of tests are significant (`tests/comparison/test_simulation.py`). Test and interval
    seldom disagree, and then hardly: the test is of the mean change of the loss alone, the interval knows too how the float model's
    own perplexity varies. A few windows far worse than the rest (a skew of 3.7, where real ones have 0.8) make both too bold over
    16: 9 to 11 % instead of 5.

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


def _over_units(
    values: ArrayLike,
    values_fp: ArrayLike,
    weights: ArrayLike | None,
    clusters: NDArray[Any] | None,
    statistic: Callable[[float, float], Statistic],
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
