"""Measures of how predictions go with what is true, and their paired differences: correlations, F1 and Matthews' coefficient.

None of them is a mean over examples. Their intervals come from a bootstrap that draws examples, the same ones for both models.
A resample is a row of weights, how often each example was drawn, and a measure is a function of such weights.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqbench.comparison.differences import NAN, Difference
from sqbench.comparison.resampling import BOOTSTRAP_SEED, Array
from sqbench.comparison.significance import minimum_detectable

TEST = "paired bootstrap over examples"
_PIECE = 2**20  # weights in memory at once

Measure = Callable[[Array], Array]  # weights [resamples, examples] -> values [resamples]


def pearson(values: Array, target: Array) -> Measure:
    """Pearson's correlation. It is 0 where one side does not vary."""
    x, y = (side - side.mean() for side in (values, target))
    x, y = (side / (side.std() or 1.0) for side in (x, y))
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return lambda weights: _correlation(*(weights @ terms).T)


def spearman(values: Array, target: Array) -> Measure:
    """Spearman's rank correlation: Pearson's of the ranks, in which equal values share their mean rank."""
    ranks = _ranker(values), _ranker(target)

    def measure(weights: Array) -> Array:
        x, y = (rank(weights) for rank in ranks)
        return _correlation(*((weights * term).sum(1) for term in (np.ones_like(x), x, y, x * x, y * y, x * y)))

    return measure


def f1(values: Array, target: Array) -> Measure:
    """F1 of the second of two classes, or the mean of F1 over more classes. A class that nothing has does not count."""
    confusion = _confusion(values, target)

    def measure(weights: Array) -> Array:
        table = confusion(weights)
        both = table.sum(1) + table.sum(2)
        with np.errstate(invalid="ignore"):
            each = 2 * np.diagonal(table, axis1=1, axis2=2) / both
        return np.nan_to_num(each[:, 1]) if table.shape[1] == 2 else np.nanmean(each, axis=1)

    return measure


def mcc(values: Array, target: Array) -> Measure:
    """Matthews' correlation coefficient, of several classes as Gorodkin (2004) has it. It is 0 where one side has one class."""
    confusion = _confusion(values, target)

    def measure(weights: Array) -> Array:
        table = confusion(weights)
        total, predicted, true = table.sum((1, 2)), table.sum(1), table.sum(2)
        right = np.trace(table, axis1=1, axis2=2)
        return _ratio(
            right * total - (predicted * true).sum(1),
            total**2 - (predicted**2).sum(1),
            total**2 - (true**2).sum(1),
            1e-12 * total**2,
        )

    return measure


MEASURES: dict[str, Callable[[Array, Array], Measure]] = {"pearson": pearson, "spearman": spearman, "f1": f1, "mcc": mcc}


def association(kind: str, values: ArrayLike, target: ArrayLike) -> float:
    """A measure over all examples, each of which counts once.

    Args:
        kind: a key of `MEASURES`.
        values: [examples] scores, or numbers of predicted classes; or [seeds, examples], whose measures are averaged.
        target: [examples] what is true.
    """
    every, truth = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(target, dtype=np.float64)
    once = np.ones((1, len(truth)))
    return float(np.mean([MEASURES[kind](one, truth)(once)[0] for one in every]))


def association_difference(
    kind: str,
    values: ArrayLike,
    values_fp: ArrayLike,
    target: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """The difference of a measure, model minus float, with a percentile interval and a p-value from one bootstrap.

    p is twice the share of resamples in which the difference has the other sign or is 0. The observed examples count as one more
    resample, so that p is never 0.

    Args:
        kind, values, target: as for `association`; `values_fp` are the float model's.
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (values, values_fp)]
    truth = np.asarray(target, dtype=np.float64)
    count = len(truth)
    assert truth.ndim == 1
    assert all(side.shape[1] == count for side in sides)
    value = association(kind, sides[0], truth) - association(kind, sides[1], truth)
    if count < 2:
        return Difference(value, NAN, NAN, level, count, TEST)
    measures = [[MEASURES[kind](one, truth) for one in side] for side in sides]
    changes = []
    for weights in _draws(count, resamples, seed):
        own, floats = (np.mean([measure(weights) for measure in side], axis=0) for side in measures)
        changes.append(own - floats)
    drawn = np.concatenate(changes)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    p = min(1.0, 2 * (1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))) / (1 + resamples))
    detectable = minimum_detectable(float(drawn.std(ddof=1)), level)
    return Difference(value, float(low), float(high), level, count, TEST, p, detectable)


def _draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """Weights [resamples, examples] of a bootstrap, some resamples at a time."""
    rng, most = np.random.default_rng(seed), max(1, _PIECE // count)
    for start in range(0, resamples, most):
        size = min(most, resamples - start)
        at = rng.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(at.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _correlation(n: Array, x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    """Pearson's correlation from weighted sums."""
    return _ratio(n * xy - x * y, n * xx - x * x, n * yy - y * y, 1e-12 * n * n)


def _ratio(both: Array, one: Array, other: Array, least: Array) -> Array:
    """A covariance over the root of the two variances. 0 where one of these is 0 but for rounding."""
    flat = (one <= least) | (other <= least)
    found: Array = np.where(flat, 0.0, both / np.sqrt(np.where(flat, 1.0, one * other)))
    return found


def _ranker(values: Array) -> Callable[[Array], Array]:
    """The function from weights to the mean ranks [resamples, examples] of values in each resample, from -1 to 1."""
    _, at = np.unique(values, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(at.max() + 1))

    def rank(weights: Array) -> Array:
        equal = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(equal, axis=1) - equal / 2
        return (2 * middle / weights.sum(1, keepdims=True) - 1)[:, at]

    return rank


def _confusion(values: Array, target: Array) -> Callable[[Array], NDArray[np.float64]]:
    """The function from weights to tables [resamples, true class, predicted class]."""
    classes = np.union1d(np.union1d(values, target), (0, 1))
    size = len(classes)
    cell = np.searchsorted(classes, target) * size + np.searchsorted(classes, values)
    cells = np.eye(size * size)[cell]
    return lambda weights: (weights @ cells).reshape(-1, size, size)
