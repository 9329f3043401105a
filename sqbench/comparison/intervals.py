"""Confidence intervals of a mean, or of what behaves like one, that make up for skewness and for few examples that differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import stdtrit

from sqbench.comparison.resampling import Array

# Of 100 simulated comparisons, in how many a 95 % interval held the true change: `python -m benchmarks.coverage shortfalls`.
_FEW_DIFFER = {1: 62, 2: 84, 3: 92}  # where so many units differ: other draws would have had none, or those that matter
_FEW_UNITS = {4: 89, 7: 90, 11: 91, 19: 92}  # over at most so many units, a few of them far worse than the rest (a skewness of 6)


def skewed_t(influence: Array, differing: int, level: float) -> tuple[float, float, float]:
    """Bounds around a statistic, as distances from it, and its standard error.

    Each bound is the farther one of two: Student's t, which is safe for symmetric data however heavy their tails, and Hall's
    transformation of it (1992, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54), which moves the interval
    towards the longer tail. t has a degree of freedom for each unit that differs, where those are fewer than n - 1: units that do
    not change tell nothing of how changes spread. For changes of one size this is where the exact sign-flip test begins to see
    them, at six.

    Args:
        influence: [units] what each unit adds to the statistic beyond its share, in first order; they add up to 0.
        differing: of the units, how many have any change.
    """
    count = len(influence)
    error = float(np.sqrt((influence**2).sum() * count / (count - 1)))
    if error == 0:
        return 0.0, 0.0, 0.0
    reach = float(stdtrit(min(max(differing, 1), count - 1), (1 + level) / 2))
    below, above = _hall(np.array([reach, -reach]), _skewness(influence) / (3 * np.sqrt(count)))
    return -max(below, reach) * error, max(-above, reach) * error, error


def held(units: int, differing: int) -> int | None:
    """Of 100 intervals of 95 % over data like these, how many hold the true change in simulations; None if at least 93."""
    known = [share for count, share in _FEW_DIFFER.items() if differing == count < units]
    known += [share for most, share in _FEW_UNITS.items() if units <= most]
    return min(known, default=None)


def shortfall(delta: Mapping[str, Any]) -> str:
    """What `held` found of a difference, as records have it, in a sentence without its full stop; empty where it found nothing."""
    if (share := delta.get("held")) is None:
        return ""
    units = delta.get("clusters") or delta["n"]
    noun = "examples" if delta.get("clusters") is None else "groups of examples"
    found = f"95 % intervals held the true change in {share} of 100 simulated comparisons"
    if (differing := delta.get("differing")) in _FEW_DIFFER:
        return f"Only {differing} of {units} {noun} differ{'s' * (differing == 1)}: where so few do, {found}"
    return f"Over {units} {noun}, {found} in which a few changed far more than the rest"


def _skewness(values: Array) -> float:
    """Of centred values, adjusted for their number (Joanes & Gill 1998, G1); 0 of two."""
    count = len(values)
    plain = float(((values / np.sqrt((values**2).mean())) ** 3).mean())
    return plain * np.sqrt(count * (count - 1)) / (count - 2) if count > 2 else 0.0


def _hall(quantiles: Array, bend: float) -> Array:
    """What Student's t statistic is, where t + bend t^2 + bend^2 t^3 / 3 + bend / 2 is a quantile.

    Args:
        bend: skewness / (3 sqrt(n)).
    """
    if abs(bend) < 1e-9:
        return quantiles
    moved: Array = (np.cbrt(1 + 3 * bend * (quantiles - bend / 2)) - 1) / bend
    return moved
