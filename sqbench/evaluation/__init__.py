"""Evaluation: metrics and per-example outcomes, paired with the float model's."""

from sqbench.evaluation.accuracy import ACCURACY
from sqbench.evaluation.base import Evaluation, EvaluationError, Result
from sqbench.evaluation.perplexity import PERPLEXITY

EVALUATIONS: dict[str, Evaluation] = {"perplexity": PERPLEXITY, "top1": ACCURACY}

__all__ = ["EVALUATIONS", "Evaluation", "EvaluationError", "Result", "natural_evaluation"]


def natural_evaluation(name: str, kind: str) -> str:
    """The evaluation that `eval=auto` stands for: the first that takes this kind of data."""
    return next(known for known, evaluation in EVALUATIONS.items() if evaluation.kind == kind) if name == "auto" else name
