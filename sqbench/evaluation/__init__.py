"""Evaluations: metrics and per-example outcomes, paired with the float model's."""

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from sqbench.config import CONF_DIR, EvalConfig
from sqbench.evaluation.accuracy import ACCURACY
from sqbench.evaluation.base import Evaluation, EvaluationError, Result
from sqbench.evaluation.generation import GENERATION
from sqbench.evaluation.harness import LM_EVAL
from sqbench.evaluation.latency import LATENCY
from sqbench.evaluation.perplexity import PERPLEXITY

EVALUATIONS: dict[str, Evaluation] = {
    "perplexity": PERPLEXITY,
    "top1": ACCURACY,
    "latency": LATENCY,
    "generation": GENERATION,
    "lm_eval": LM_EVAL,
}

__all__ = ["EVALUATIONS", "Evaluation", "EvaluationError", "Result", "defaults_of", "natural_evaluation", "settings_of"]


def natural_evaluation(name: str, kind: str) -> str:
    """The evaluation `name`. For `auto` it is the first that takes this kind of data."""
    return next(known for known, evaluation in EVALUATIONS.items() if kind in evaluation.settings) if name == "auto" else name


def settings_of(name: str, kind: str, chosen: Any) -> dict[str, Any]:
    """The chosen values of `eval` that the numbers of an evaluation depend on, as plain data."""
    values = {key: chosen[key] for key in EVALUATIONS[name].settings[kind]}
    return {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in values.items()}


@cache
def defaults_of(name: str, kind: str) -> dict[str, Any]:
    """The default values of `eval` that the numbers of an evaluation depend on. `conf/eval` is their only source."""
    chosen = OmegaConf.merge(OmegaConf.structured(EvalConfig), OmegaConf.load(CONF_DIR / "eval" / f"{name}.yaml"))
    return settings_of(name, kind, chosen)
