"""Paired comparisons of models by example. Pure functions on arrays, for evaluation and for tables alike."""

from sqbench.comparison.differences import (
    FEW,
    Difference,
    mean_difference,
    perplexity_difference,
    proportion_difference,
    speedup,
)
from sqbench.comparison.outcomes import Outcome, differences, over_seeds, stderr_name
from sqbench.comparison.resampling import BOOTSTRAP_SEED
from sqbench.comparison.significance import POWER, holm, minimum_detectable

__all__ = [
    "BOOTSTRAP_SEED",
    "FEW",
    "POWER",
    "Difference",
    "Outcome",
    "differences",
    "holm",
    "mean_difference",
    "minimum_detectable",
    "over_seeds",
    "perplexity_difference",
    "proportion_difference",
    "speedup",
    "stderr_name",
]
