"""Paired comparisons of models by example. Pure functions on arrays, for evaluation and for tables alike."""

from sqbench.comparison.associations import MEASURES, association, association_difference
from sqbench.comparison.differences import (
    Difference,
    mean_difference,
    perplexity_difference,
    proportion_difference,
    speedup,
)
from sqbench.comparison.intervals import shortfall
from sqbench.comparison.metrics import HIGHER, LOWER, SIZE, Metric, agreed, main_metric
from sqbench.comparison.outcomes import Outcome, differences, stderr_name
from sqbench.comparison.resampling import BOOTSTRAP_SEED
from sqbench.comparison.significance import POWER, holm, minimum_detectable

__all__ = [
    "BOOTSTRAP_SEED",
    "HIGHER",
    "LOWER",
    "MEASURES",
    "POWER",
    "SIZE",
    "Difference",
    "Metric",
    "Outcome",
    "agreed",
    "association",
    "association_difference",
    "differences",
    "holm",
    "main_metric",
    "mean_difference",
    "minimum_detectable",
    "perplexity_difference",
    "proportion_difference",
    "shortfall",
    "speedup",
    "stderr_name",
]
