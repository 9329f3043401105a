"""Paired differences between two models that saw the same examples: value, interval, test, and what the test could have found.

Swapping the models negates a difference, inverts a ratio of perplexities, and keeps the p-value. The order of examples has no say.
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
_MOST_NATS = 600.0  # an upper bound of a broken model over two windows may be higher, and no float64 holds its exponential


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
        differing: how many of them differ at all, where not all do.
        held: of 100 simulated intervals over data like these, how many hold the true change, where that is less than they promise.
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
    differing: int | None = None
    held: int | None = None
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
        clusters: [examples] what each shares with others; whole clusters then count as one and are flipped together.
        weights: [examples] of the mean; all the same by default.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(values_fp, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    assert x.shape == y.shape == w.shape
    assert x.ndim == 1
    value = float((w * (x - y)).sum() / w.sum())
    # Centred, so that nothing cancels in the spread of models that hardly differ.
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
    """exp(mean nll) - exp(mean nll_fp) over windows or documents: the difference of the mean losses, exponentiated.

    Test and interval are those of the mean loss. The interval is therefore one of the ratio of both perplexities. It is given as a
    change of the float model's perplexity over these windows. No bound lies below a perplexity of 0.

    Args:
        nll, nll_fp: [windows] mean negative log-likelihood per token.
        weights: [windows] tokens; all the same by default.
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
