"""The paired comparisons of `sqbench.comparison`, which records' readers use too and which therefore need no evaluation."""

from sqbench.comparison import (
    BOOTSTRAP_SEED,
    Difference,
    mean_difference,
    perplexity_difference,
    proportion_difference,
    speedup,
)

__all__ = ["BOOTSTRAP_SEED", "Difference", "mean_difference", "perplexity_difference", "proportion_difference", "speedup"]
