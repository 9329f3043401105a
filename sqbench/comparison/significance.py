"""p-values that need no resampling, their correction for multiple tests, and the smallest detectable difference."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtri, stdtrit

from sqbench.comparison.resampling import Array

POWER = 0.8


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of flips from wrong to right and from right to wrong, if both are equally likely."""
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(p_values: ArrayLike) -> Array:
    """p-values of several tests of one table, adjusted so that the chance of any false positive is alpha (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on. None falls below the one before.
    NaN means no test and stays NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def minimum_detectable(error: float, level: float, units: int | None = None, power: float = POWER) -> float:
    """The size of a difference that a two-sided test at 1 - level finds with this power.

    Args:
        error: standard error of the difference.
        units: the number of independent examples that it was estimated from. None if many.
    """
    quantiles = (1 + level) / 2, power
    return error * float(sum(ndtri(share) if units is None else stdtrit(units - 1, share) for share in quantiles))
