"""Confidence intervals of a mean, or of a similar statistic. They correct for skewness and for few examples that differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import stdtrit

from sqbench.comparison.resampling import Array

# In how many of 100 simulated comparisons a 95 % interval held the true change (`python -m benchmarks.coverage shortfalls`).
_FEW_DIFFER = {1: 62, 2: 84, 3: 92}  # by the number of units that differ; another draw could have none, or the ones that matter
_FEW_UNITS = {4: 89, 7: 90, 11: 91, 19: 92}  # by the most units; a few of them are far worse than the rest (a skewness of 6)


def skewed_t(influence: Array, differing: int, level: float) -> tuple[float, float, float]:
    """Bounds around a statistic, as distances from it, and its standard error.

    Each bound is the farther one of two. Student's t is safe for symmetric data, however heavy their tails. Hall's transformation
    of it (1992, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54) moves the interval towards the longer
    tail. t has a degree of freedom for each unit that differs, but at most n - 1. Units that do not change tell nothing about the
    spread of changes. For changes of one size, the interval first excludes 0 when six units differ. The exact sign-flip test, too,
    first finds them at six.

    Args:
        influence: [units] the first-order contribution of each unit to the statistic, beyond its share. They add up to 0.
        differing: how many of the units have any change.
    """
    count = len(influence)
    error = float(np.sqrt((influence**2).sum() * count / (count - 1)))
    if error == 0:
        return 0.0, 0.0, 0.0
    reach = float(stdtrit(min(max(differing, 1), count - 1), (1 + level) / 2))
    below, above = _hall(np.array([reach, -reach]), _skewness(influence) / (3 * np.sqrt(count)))
    return -max(below, reach) * error, max(-above, reach) * error, error


def held(units: int, differing: int) -> int | None:
    """How many of 100 intervals of 95 % over data like these hold the true change in simulations. None if at least 93."""
    known = [share for count, share in _FEW_DIFFER.items() if differing == count < units]
    known += [share for most, share in _FEW_UNITS.items() if units <= most]
    return min(known, default=None)


def shortfall(delta: Mapping[str, Any]) -> str:
    """A sentence, without its full stop, about what `held` found of a record's difference. Empty where it found nothing."""
    if (share := delta.get("held")) is None:
        return ""
    units = delta.get("clusters") or delta["n"]
    noun = "examples" if delta.get("clusters") is None else "groups of examples"
    found = f"95 % intervals held the true change in {share} of 100 simulated comparisons"
    if (differing := delta.get("differing")) in _FEW_DIFFER:
        return f"Only {differing} of {units} {noun} differ{'s' * (differing == 1)}: where so few do, {found}"
    return f"Over {units} {noun}, {found} in which a few changed far more than the rest"


def _skewness(values: Array) -> float:
    """The skewness of centred values, adjusted for their number (Joanes & Gill 1998, G1). 0 for two values."""
    count = len(values)
    plain = float(((values / np.sqrt((values**2).mean())) ** 3).mean())
    return plain * np.sqrt(count * (count - 1)) / (count - 2) if count > 2 else 0.0


def _hall(quantiles: Array, bend: float) -> Array:
    """The t statistics t for which t + bend t^2 + bend^2 t^3 / 3 + bend / 2 is a quantile of Student's t.

    Args:
        bend: skewness / (3 sqrt(n)).
    """
    if abs(bend) < 1e-9:
        return quantiles
    moved: Array = (np.cbrt(1 + 3 * bend * (quantiles - bend / 2)) - 1) / bend
    return moved
