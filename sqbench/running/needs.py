"""The collectors that a point reads, and those that all points of a sweep read: its first calibration collects them for all."""

import os
from collections.abc import Iterable

from sqbench.pipeline import mixed
from sqbench.running.resolved import Resolved
from sqbench.statistics import outliers

SHARED = "SQBENCH_SWEEP_NEEDS"  # environment variable: what the points of the sweep read together, for the points in any process


def needs_of(resolved: Resolved) -> frozenset[str]:
    """Names of the collectors that a point reads: for its method, its mixed precision and its report."""
    recipe = resolved.recipe
    if recipe.is_float or recipe.stored or recipe.foreign or resolved.propagate:  # each block then collects what it needs
        return frozenset()
    return recipe.needs(resolved.scheme) | outliers.NEEDS | (mixed.NEEDS if resolved.mixed is not None else frozenset())


def union(points: Iterable[Resolved]) -> str:
    """What the points of a sweep read together, as the value of SHARED.

    A sweep combines all of its values, so it has the same methods and schemes with every model, data and calibration. One union
    serves all of them.
    """
    return ",".join(sorted(frozenset[str]().union(*map(needs_of, points))))


def collected_for(resolved: Resolved) -> frozenset[str]:
    """Names of the collectors that the calibration of a point runs. A search does not know its points, so each has its own."""
    own = needs_of(resolved)
    if resolved.calibration.source == "weights" or resolved.propagate:  # nothing is read or cached, so there is no pass to share
        return own
    return own | frozenset(filter(None, os.environ.get(SHARED, "").split(",")))
