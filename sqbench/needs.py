"""The collectors that a point reads, and those that all points of a sweep read: its first calibration collects them for all."""

import os
from collections.abc import Iterable

from omegaconf import DictConfig

from sqbench.pipeline import mixed
from sqbench.quant import outliers
from sqbench.recipes.configured import recipe_of, scheme_of

SHARED = "SQBENCH_SWEEP_NEEDS"  # environment variable: what the points of the sweep read together, for the points in any process


def needs_of(cfg: DictConfig) -> frozenset[str]:
    """Names of the collectors that a point reads: for its method, its mixed precision and its report."""
    recipe = recipe_of(cfg)
    if recipe.is_float or cfg.calibration.propagate:  # which collects what each block needs, for itself
        return frozenset()
    return recipe.needs(scheme_of(cfg)) | outliers.NEEDS | (mixed.NEEDS if cfg.mixed is not None else frozenset())


def union(cfgs: Iterable[DictConfig]) -> str:
    """What the points of a sweep read together, as the value of SHARED.

    A sweep combines all of its values, so it has the same methods and schemes with every model, data and calibration. One union
    serves all of them.
    """
    return ",".join(sorted(frozenset[str]().union(*map(needs_of, cfgs))))


def collected_for(cfg: DictConfig) -> frozenset[str]:
    """Names of the collectors that the calibration of a point runs. A search does not know its points, so each has its own."""
    own = needs_of(cfg)
    if cfg.calibration.source == "weights" or cfg.calibration.propagate:  # nothing is read or cached, so there is no pass to share
        return own
    return own | frozenset(filter(None, os.environ.get(SHARED, "").split(",")))
