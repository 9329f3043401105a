"""The interface of every evaluation: metrics and per-example outcomes, and their paired differences from the float model's."""

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
    """The model's output is not a valid prediction."""


@dataclass(frozen=True)
class Result:
    """The result of evaluating a model.

    Attributes:
        metrics: name -> number.
        samples: one row per example, with the model's numbers. Against a reference the float model's numbers are beside them.
        model: the evaluated model.
        kept: name -> tensor [examples, ...] that a later comparison needs. None if nothing is kept; the model may then run again.
        baseline: the float model's result, if it was made beside this one.
        noise: the spread of the metrics under tiny changes of the model's inputs, if it was asked for.
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
        settings: kind of data -> the keys of `eval` that its numbers depend on. Other kinds are not supported.
        metric: the headline metric, if the result has it.
        run: (model, examples, reference or None, **settings) -> result.
        as_reference: float result -> result with the columns and metrics of a comparison, which others are compared with.
        size: kind of data -> the key of the number of examples. Empty if fewer examples make it neither cheaper nor rougher.
        beside: dtype in which the float model runs again beside every point. None keeps its result, in its own dtype.
        check: raises UserError for invalid values of `eval`. It loads nothing.
        outcomes: samples -> metric -> the column that the metric averages. Points are also compared with each other by it.
        comparison: (samples, resamples, level) -> metric -> difference from the float model. None uses the means of `outcomes`.
        inputs: values of `eval` -> other inputs that its numbers depend on, for the identity, such as fingerprints of files.
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
        """Metric -> paired difference from the float model. The samples also hold the float model's values."""
        if self.comparison is not None:
            return self.comparison(samples, resamples, level)
        return differences(samples, self.outcomes(samples), resamples, level)

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The metric to show in a line about a result: the headline metric if present, else the first."""
        return self.metric if self.metric in metrics else next(iter(metrics))


def first_nonfinite(model: Model, inputs: Tensor) -> str:
    """A sentence that names the first layer with NaN or infinity in its output, in a forward pass over a batch."""
    found: list[str] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: object, output: object) -> None:
            try:
                values = first_tensor(output)
            except (TypeError, IndexError, KeyError):
                return  # the layer returns no tensor
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
    """Raise EvaluationError if a loss is NaN or infinite. The message names the first broken layer."""
    if not math.isfinite(value):
        raise EvaluationError(f"the loss of {what} is {value}; {first_nonfinite(model, inputs)}")
