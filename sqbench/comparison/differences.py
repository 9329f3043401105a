"""Paired differences between two models on the same examples: value, interval, test, and the smallest detectable difference.

Swapping the models negates a difference, inverts a ratio of perplexities, and keeps the p-value. The order of
examples does not matter.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from sqbench.comparison.intervals import held, skewed_t
from sqbench.comparison.resampling import BOOTSTRAP_SEED, Array, by_unit, sign_flips
from sqbench.comparison.significance import mcnemar, minimum_detectable

NAN = float("nan")
_MOST_NATS = 600.0  # a broken model over two windows may have a higher upper bound, and no float64 holds its exponential


@dataclass(frozen=True)
class Difference:
    """A paired difference, its confidence interval and its test.

    Attributes:
        value: the difference, model minus float. For a speed-up, how many times as fast as float the model is.
        low, high: bounds of the interval. NaN with fewer than two independent examples.
        level: the coverage of the interval, for example 0.95.
        n: the number of examples.
        test: how interval and p-value were made.
        p: two-sided p-value of no difference. NaN where there is no test.
        detectable: the size of a difference that a test at 1 - level finds with 80 % power, for this many examples of this spread.
        clusters: the number of groups of examples that share something. A group counts as one. None if all examples stand alone.
        differing: how many units (groups, or examples without groups) differ at all, where not all do.
        held: how many of 100 simulated intervals over data like these hold the true change, where that is less than promised.
        gained, lost: how many examples only this model has right, and how many only the float model. For right and wrong answers.
        flip_rate: the share of examples that are gained or lost.
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
    differing: int | None = None
    held: int | None = None
    gained: int | None = None
    lost: int | None = None
    flip_rate: float | None = None

    @property
    def units(self) -> int:
        """The number of independent units: groups, or examples without groups."""
        return self.n if self.clusters is None else self.clusters

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record. NaN becomes None, and fields that this kind of difference lacks are left out."""
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

    The interval adds one flip to either side, which keeps its coverage with few flips. A bootstrap knows only the flips that it
    saw; with no flip, its interval has width 0. The adjusted interval hardly ever disagrees with the exact test.

    Args:
        correct, correct_fp: [examples] whether each was right.
        clusters: [examples] what each example shares with others, such as a passage. `mean_difference` then compares clusters.
    """
    assert correct.shape == correct_fp.shape
    assert correct.ndim == 1
    count = len(correct)
    gained, lost = int((correct & ~correct_fp).sum()), int((~correct & correct_fp).sum())
    flips: dict[str, Any] = {"gained": gained, "lost": lost, "flip_rate": (gained + lost) / count}
    if clusters is not None and len(np.unique(clusters)) < count:
        found = mean_difference(correct, correct_fp, clusters=clusters, resamples=resamples, level=level)
        return replace(found, **flips)
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
    """Mean of a number per example, model minus float: sign-flip test and skew-corrected t interval (`intervals.skewed_t`).

    Args:
        values, values_fp: [examples].
        clusters: [examples] what each example shares with others. A cluster then counts as one, and is flipped as a whole.
        weights: [examples] weights of the mean. All the same by default.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(values_fp, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    assert x.shape == y.shape == w.shape
    assert x.ndim == 1
    value = float((w * (x - y)).sum() / w.sum())
    # Centred, because the spread of models that hardly differ would suffer from cancellation.
    units = by_unit([w * (x - y - value) / w.sum(), w * (x - y)], clusters)
    shared, differing = None if len(units) == len(x) else len(units), int(np.count_nonzero(units[:, 1]))
    test = "sign-flip test, skew-corrected t interval"
    p = sign_flips(units[:, 1], resamples)
    if len(units) < 2:
        return Difference(value, NAN, NAN, level, len(x), test, p, clusters=shared)
    below, above, error = skewed_t(units[:, 0], differing, level)
    return Difference(
        value,
        value + below,
        value + above,
        level,
        len(x),
        test,
        p,
        minimum_detectable(error, level, len(units)),
        clusters=shared,
        differing=differing if differing < len(units) else None,
        held=held(len(units), differing),
    )


def perplexity_difference(
    nll: ArrayLike,
    nll_fp: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    clusters: NDArray[Any] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """Return exp(mean nll) - exp(mean nll_fp) over windows or documents.

    Test and interval are those of the difference of the mean losses. The interval is therefore one of the ratio of both
    perplexities. It is given as a change of the float model's perplexity over these windows. No bound lies below a perplexity of 0.

    Args:
        nll, nll_fp: [windows] mean negative log-likelihood per token.
        weights: [windows] the number of tokens. All the same by default.
    """
    loss = mean_difference(nll, nll_fp, clusters=clusters, weights=weights, resamples=resamples, level=level)
    shares = None if weights is None else np.asarray(weights, dtype=np.float64)
    perplexity_fp = float(np.exp(np.average(np.asarray(nll_fp, dtype=np.float64), weights=shares)))

    def change(nats: float) -> float:
        return perplexity_fp * float(np.expm1(min(nats, _MOST_NATS)))

    return replace(
        loss,
        value=change(loss.value),
        low=change(loss.low),
        high=change(loss.high),
        test=f"{loss.test} of the log ratio",
        detectable=change(loss.detectable),
    )


def speedup(
    seconds: Array,
    seconds_fp: Array,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """How many times as fast as float: the median of seconds_fp / seconds, with a percentile bootstrap interval over repetitions.

    The ratio is taken within each repetition, in which both ran one after the other. A slowdown of the machine that lasts longer
    than a repetition therefore cancels.

    Args:
        seconds, seconds_fp: [repetitions] positive times.
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
