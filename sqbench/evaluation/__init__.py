"""Evaluation: metrics and per-example outcomes, paired with the float model's."""

from sqbench.evaluation.perplexity import Result, perplexity

EVALUATIONS = {"perplexity": perplexity}

__all__ = ["EVALUATIONS", "Result", "perplexity"]
