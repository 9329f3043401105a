"""The interface of every evaluation: metrics and per-example outcomes, and their paired differences from the float model's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

import pandas as pd
import torch
from torch import Tensor, nn

from sqbench.comparison import Difference, Metric, differences, speedup
from sqbench.config import SIZES
from sqbench.errors import UserError
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
class Settings:
    """The own settings of an evaluation. Each field is a key of `eval`, and `conf/eval` holds its default."""

    def check(self) -> None:
        """Raise UserError for a value that cannot work. Nothing is loaded."""

    def check_fit(self, window: int, context: int | None, model: str) -> None:
        """Raise UserError for texts that do not fit into a window of the data, or into the context of a language model.

        Args:
            window: tokens.
            context: the most tokens that the model takes. None if it has no limit.
            model: its name, for the message.
        """

    def used(self, kind: str) -> dict[str, Any]:
        """The settings that the numbers on this kind of data depend on, as plain data."""
        return asdict(self)

    def identified(self, kind: str) -> dict[str, Any]:
        """The settings in the identity of a point, as plain data.

        A field with a default was added later. At its default it is left out, so that older points keep their identity.
        """
        added = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in self.used(kind).items() if name not in added or value != added[name]}

    @property
    def chats(self) -> bool:
        """Whether the tokenizer's chat template wraps what the model is asked."""
        return False

    def inputs(self) -> dict[str, Any]:
        """Other inputs that the numbers depend on, for the identity, such as fingerprints of files."""
        return {}


def require(settings: Settings, least: Mapping[str, int]) -> None:
    """Raise UserError if a setting is smaller than its least value. None stands for no limit and passes."""
    for key, smallest in least.items():
        value = getattr(settings, key)
        if value is not None and value < smallest:
            nothing = ", or null" if type(None) in get_args(get_type_hints(type(settings))[key]) else ""
            raise UserError(f"eval.{key}={value}: must be {smallest} or more{nothing}")


@dataclass(frozen=True)
class Evaluation:
    """One way to judge a model.

    Attributes:
        kinds: the kinds of data that it supports: `text`, `sentences`, `images`.
        metrics: its metrics. The first is the headline.
        run: (model, examples, reference or None, **settings) -> result.
        as_reference: float result -> result with the columns and metrics of a comparison, which others are compared with.
        settings: the dataclass of its own settings.
        declare: samples -> metrics, where these are known only afterwards. None takes `metrics`.
        size: kind of data -> the key of the number of examples. Empty if fewer examples make it neither cheaper nor rougher.
        beside: dtype in which the float model runs again beside every point. None keeps its result, in its own dtype.
        single_pass: whether it sees every example once, so that its time can be foreseen.
    """

    kinds: tuple[str, ...]
    metrics: tuple[Metric, ...]
    run: Callable[..., Result]
    as_reference: Callable[[Result], Result]
    settings: type[Settings] = Settings
    declare: Callable[[pd.DataFrame], Sequence[Metric]] | None = None
    size: Mapping[str, str] = field(default_factory=lambda: {kind: f"data.{key}" for kind, key in SIZES.items()})
    beside: str | None = None
    single_pass: bool = False

    def declared(self, samples: pd.DataFrame) -> dict[str, Metric]:
        """The metrics of a result by name. Those whose column the samples lack are left out."""
        found = self.metrics if self.declare is None else self.declare(samples)
        return {metric.name: metric for metric in found if metric.column is None or metric.column in samples}

    def differences(self, samples: pd.DataFrame, resamples: int, level: float) -> dict[str, Difference]:
        """Metric -> paired difference from the float model. The samples also hold the float model's values.

        The difference of a speed is how many times as fast as float the model is. It is a ratio of seconds.
        """
        declared = self.declared(samples)
        speeds = {name: metric.timed for name, metric in declared.items() if metric.timed is not None}
        outcomes = {name: metric.outcome for name, metric in declared.items() if metric.outcome is not None}
        found = {
            name: speedup(samples[stage].to_numpy(), samples[f"{stage}_fp"].to_numpy(), resamples=resamples, level=level)
            for name, stage in speeds.items()
            if f"{stage}_fp" in samples
        }
        return found | differences(samples, outcomes, resamples, level)

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The metric to show in a line about a result: the headline metric if present, else the first."""
        first = self.metrics[0].name
        return first if first in metrics else next(iter(metrics))


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
