"""Resampling of independent units: the sign-flip test and the bootstrap-t interval, seeded, in bounded memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
# (a, b) -> the statistic and its derivatives by a and b, each of their shape; see `studentized`.
Statistic = Callable[[Array, Array], tuple[Array, Array, Array]]

BOOTSTRAP_SEED = 20221118
ENUMERATED = 18  # examples that differ, up to which all 2^18 signs are tried: milliseconds, and no chance in the result
_PIECE = 2**21  # draws that exist at once


def by_unit(columns: Sequence[Array], clusters: NDArray[Any] | None) -> Array:
    """Columns [examples] side by side, summed over each cluster where examples share one: [units, columns]."""
    if clusters is None:
        return np.stack(columns, axis=1)
    _, at = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(at, weights=column) for column in columns], axis=1)


def sign_flips(change: Array, resamples: int, seed: int = BOOTSTRAP_SEED) -> float:
    """Two-sided p-value of the hypothesis that swapping both models within a unit changes nothing: exact up to `ENUMERATED` units.

    The statistic is |sum of changes| over flips of their signs, all of them or `resamples` random ones (whose own draw counts as
    one, so that p is never 0: Phipson & Smyth 2010). For changes of -1, 0 and 1 this is the exact McNemar test. Below six units
    that differ no p-value is under 5 %: there are too few ways to flip.

    Args:
        change: [units] totals of a unit, model minus the other one.
    """
    change = np.sort(change[change != 0])  # in an order of its own: that of the examples must not matter
    count, observed = len(change), abs(change.sum())
    least = observed - 1e-12 * np.abs(change).sum()  # equal but for the order of a sum
    if count <= ENUMERATED:
        sums = np.zeros(1)
        for step in change:
            sums = np.concatenate([sums + step, sums - step])
        return float((np.abs(sums) >= least).mean())
    magnitude, rng, reached = np.sort(np.abs(change)), np.random.default_rng(seed), 0
    for piece in _pieces(resamples, count):
        signs = 2.0 * rng.integers(0, 2, size=(piece, count), dtype=np.int8) - 1.0
        reached += int((np.abs(signs @ magnitude) >= least).sum())
    return (1 + reached) / (1 + resamples)


def studentized(
    units: Array, statistic: Statistic, level: float, resamples: int, seed: int = BOOTSTRAP_SEED
) -> tuple[float, float, float]:
    """Bounds of a bootstrap-t interval (Efron 1979; Hall 1988), and the standard error.

    The statistic is a function of two ratios of totals over units, a = sum(units[:, 0]) / sum(units[:, 2]) and b likewise of the
    second column. Each resample is divided by its own standard error (delta method), which is what makes up for small samples.

    Args:
        units: [units, 3].
    """
    count = len(units)
    products = units[:, :, None] * units[:, None, :]
    rows = np.concatenate([units, products.reshape(count, 9)], axis=1)
    value, error = _with_error(rows.sum(0, keepdims=True), statistic, count)
    rng, found = np.random.default_rng(seed), []
    for piece in _pieces(resamples, count):
        draws = rng.integers(0, count, size=(piece, count)) + count * np.arange(piece)[:, None]
        times = np.bincount(draws.ravel(), minlength=piece * count).reshape(piece, count)
        values, errors = _with_error(times @ rows, statistic, count)
        errors[errors < 1e-6 * error] = 0.0  # one unit alone, times a rounding
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(values == value, 0.0, (values - value) / errors))
    ratios = np.concatenate(found)
    low, high = np.quantile(ratios, (1 - level) / 2, method="lower"), np.quantile(ratios, (1 + level) / 2, method="higher")
    if not np.isfinite([low, high]).all():  # of two to four units too many resamples hold one alone, which has no spread
        high = float(stdtrit(count - 1, (1 + level) / 2))
        low = -high
    return float(value[0] - high * error[0]), float(value[0] - low * error[0]), float(error[0])


def _with_error(totals: Array, statistic: Statistic, count: int) -> tuple[Array, Array]:
    """The statistic and its standard error by the delta method, from totals of units and of their products [resamples, 3 + 9]."""
    sums, squares = totals[:, :3], totals[:, 3:].reshape(-1, 3, 3)
    a, b = (sums[:, :2] / sums[:, 2:]).T
    value, by_a, by_b = statistic(a, b)
    gradient = np.stack([by_a, by_b, -(by_a * a + by_b * b)], axis=1) / sums[:, 2:]
    variance = np.einsum("ri,rij,rj->r", gradient, squares, gradient) * count / (count - 1)
    return value, np.sqrt(np.maximum(variance, 0.0))


def _pieces(resamples: int, count: int) -> list[int]:
    """How many resamples to draw at a time."""
    most = max(1, _PIECE // count)
    return [min(most, resamples - start) for start in range(0, resamples, most)]
