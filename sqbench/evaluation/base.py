"""What every evaluation is: metrics and per-example outcomes of a model, and their paired difference from the float model's."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sqbench.comparison import Difference, Outcome, differences
from sqbench.config import EvalConfig
from sqbench.models.base import Model
from sqbench.models.tracing import first_tensor


class EvaluationError(Exception):
    """The model's output is no prediction."""


@dataclass(frozen=True)
class Result:
    """What evaluating a model gave.

    Attributes:
        metrics: name -> number.
        samples: one row per example, with numbers of the model and, against a reference, of the float model beside them.
        model: what was evaluated.
        kept: name -> what a later comparison needs of each example, [examples, ...]; None where that is too large to keep, and
            the model runs again.
        baseline: the float model's result, where that was made beside this one.
        noise: how far the metrics move with the last digits of what the model reads, where that was asked for.
    """

    metrics: dict[str, float]
    samples: pd.DataFrame
    model: Any
    kept: dict[str, Tensor] | None
    baseline: "Result | None" = None
    noise: dict[str, Any] | None = None


@dataclass(frozen=True)
class Evaluation:
    """One way to judge a model.

    Attributes:
        settings: the kinds of data it takes, and for each the keys of `eval` that its numbers depend on.
        metric: the headline, where the result has it.
        run: (model, examples, reference or None, **settings) -> result.
        as_reference: gives a float result the columns and metrics that a comparison has, and can be compared with.
        size: kind of data -> the key of the number of examples; without one where fewer make it neither cheaper nor rougher.
        beside: dtype in which the float model runs anew beside every point; None: its result, in its own dtype, is kept.
        check: raises UserError for values of `eval` that cannot work; nothing is loaded.
        outcomes: samples -> metric -> the column that it is an average of, by which points are compared with each other, too.
        comparison: (samples, resamples, level) -> metric -> difference from the float model, where that is no mean of outcomes.
        inputs: what else than values of `eval` its numbers depend on, for the identity: fingerprints of files that it reads.
    """

    settings: Mapping[str, tuple[str, ...]]
    metric: str
    run: Callable[..., Result]
    as_reference: Callable[[Result], Result]
    size: Mapping[str, str] = field(default_factory=lambda: {"text": "data.windows", "images": "data.images"})
    beside: str | None = None
    check: Callable[[EvalConfig], None] = lambda chosen: None
    inputs: Callable[[EvalConfig], dict[str, Any]] = lambda chosen: {}
    outcomes: Callable[[pd.DataFrame], dict[str, Outcome]] = lambda samples: {}
    comparison: Callable[[pd.DataFrame, int, float], dict[str, Difference]] | None = None

    def differences(self, samples: pd.DataFrame, resamples: int, level: float) -> dict[str, Difference]:
        """Metric -> paired difference from the float model, whose values are in the samples as well."""
        if self.comparison is not None:
            return self.comparison(samples, resamples, level)
        return differences(samples, self.outcomes(samples), resamples, level)

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The metric that a line about a result shows: its own headline, else the first."""
        return self.metric if self.metric in metrics else next(iter(metrics))


def first_nonfinite(model: Model, inputs: Tensor) -> str:
    """A sentence naming the first layer of a forward pass over a batch whose output holds NaN or infinity."""
    found: list[str] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: object, output: object) -> None:
            try:
                values = first_tensor(output)
            except (TypeError, IndexError, KeyError):
                return  # returns no tensor
            if not found and not bool(torch.isfinite(values).all()):
                found.append(name)

        return layer.register_forward_hook(hook)

    leaves = [(name, layer) for name, layer in model.module.named_modules() if not list(layer.children())]
    handles = [watch(name, layer) for name, layer in leaves]
    try:
        model.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return (
        f"the first layer that wrote NaN or infinity is {found[0]}"
        if found
        else "no layer wrote NaN or infinity: the logits overflow"
    )


def require_finite(value: float, what: str, model: Model, inputs: Tensor) -> None:
    """Raise EvaluationError, naming the first broken layer, if a loss is NaN or infinite."""
    if not math.isfinite(value):
        raise EvaluationError(f"the loss of {what} is {value}; {first_nonfinite(model, inputs)}")
