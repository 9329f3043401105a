"""Independent units, and the sign-flip test over them. The test is seeded and takes bounded memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BOOTSTRAP_SEED = 20221118
ENUMERATED = 18  # up to so many differing units, all 2^18 signs are tried: in milliseconds, without chance
_PIECE = 2**21  # signs that are in memory at once


def by_unit(columns: Sequence[Array], clusters: NDArray[Any] | None) -> Array:
    """Columns [examples] side by side, [units, columns]. Examples that share a cluster are summed."""
    if clusters is None:
        return np.stack(columns, axis=1)
    _, at = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(at, weights=column) for column in columns], axis=1)


def sign_flips(change: Array, resamples: int, seed: int = BOOTSTRAP_SEED) -> float:
    """Two-sided p-value of the hypothesis that swapping both models within a unit changes nothing.

    The statistic is |sum of changes| over flips of their signs. Up to `ENUMERATED` units that differ, all flips are tried and p is
    exact. Beyond, `resamples` random flips are drawn. The observed signs count as one more, so that p is never 0 (Phipson & Smyth
    2010). For changes of -1, 0 and 1 this is the exact McNemar test. With fewer than six units that differ, there are too few
    flips for a p-value under 5 %.

    Args:
        change: [units] the total of each unit, model minus the other one.
    """
    change = np.sort(change[change != 0])  # sorted, because the order of the examples must not matter
    count, observed = len(change), abs(change.sum())
    least = observed - 1e-12 * np.abs(change).sum()  # sums that differ by their order only are equal
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


def _pieces(resamples: int, count: int) -> list[int]:
    """How many resamples to draw at a time."""
    most = max(1, _PIECE // count)
    return [min(most, resamples - start) for start in range(0, resamples, most)]
