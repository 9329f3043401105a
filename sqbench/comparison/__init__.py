"""Paired comparisons of models by example. Pure functions on arrays, for evaluation and for tables alike."""

from sqbench.comparison.differences import (
    FEW,
    Difference,
    holm,
    mean_difference,
    minimum_detectable,
    perplexity_difference,
    proportion_difference,
    speedup,
)

__all__ = [
    "FEW",
    "Difference",
    "holm",
    "mean_difference",
    "minimum_detectable",
    "perplexity_difference",
    "proportion_difference",
    "speedup",
]
