"""The verbs of sqbench, for notebooks and for scripts: configure, load, calibrate, allocate, quantize, train, evaluate, save."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sqbench import data, models, training
from sqbench.calibration import Statistics, calibrate
from sqbench.config import compose_config
from sqbench.data import Examples
from sqbench.data.images import LabelledImages
from sqbench.errors import UserError, known
from sqbench.evaluation import EVALUATIONS, Result, natural_evaluation, own_settings
from sqbench.exports.targets import save
from sqbench.formats.scheme import Scheme
from sqbench.models import Model
from sqbench.parts.task import Task
from sqbench.pipeline import engine
from sqbench.pipeline.mixed import Allocation, measure, mix
from sqbench.recipes.configured import recipe_of, scheme_of
from sqbench.recipes.recipe import Recipe
from sqbench.rounding.trained import Qat
from sqbench.running import assembly
from sqbench.running.checks import check
from sqbench.running.resolved import resolve


def configure(*overrides: str) -> DictConfig:
    """The configuration of a command line with these overrides, checked.

    Raises:
        UserError: a value cannot work.
    """
    cfg = compose_config(*overrides)
    check(resolve(cfg))
    return cfg


def load(*overrides: str) -> tuple[Model, Examples]:
    """A model and its examples. They are named as on the command line: `load("model=smollm2_135m", "data=pydoc")`.

    Raises:
        UserError: the model or the data is not available, or they do not fit each other.
    """
    resolved = resolve(configure(*overrides))
    source = models.locate(resolved.model, resolved.kind)
    assembly.check_window(resolved, source)
    assembly.check_sizes(resolved, source)
    model = assembly.read(source, resolved)
    examples = assembly.examples_of(data.fetch(resolved.data, resolved.calibration), model, source, resolved)
    return assembly.with_head(model, examples, resolved, None), examples


def allocate(
    model: Model, statistics: Statistics, scheme: Scheme, budget: float, widths: Sequence[int] = (2, 3, 4, 6, 8)
) -> Allocation:
    """Bits for each group of layers, `budget` on average. Use them with `quantize(..., bits=allocation.applied(scheme))`.

    Args:
        scheme: the damage is measured at its own width. A narrow width is the most informative.
    """
    task = Task(model, statistics, scheme)
    return mix(task, measure(task, model), list(widths), budget)


def quantize(
    model: Model,
    statistics: Statistics,
    method: str | Recipe = "smoothquant",
    bits: str | Scheme = "auto",
    alpha: float | str | None = None,
    *,
    rounding: str | None = None,
    ranges: str | None = None,
    propagate: bool = False,
    **parameters: Any,
) -> Model:
    """A quantized model. The float model does not change.

    Args:
        method: a name in `conf/method`, or a recipe.
        bits: a name in `conf/bits`, or the scheme itself; `auto` is the method's natural scheme.
        alpha: a number in [0, 1] or `auto`, for the methods that have one.
        rounding: a name in `conf/rounding`, in place of the method's own.
        ranges: a name in `conf/ranges`, in place of the method's own.
        propagate: whether each block is calibrated on what the quantized blocks before it write. Statistics are then collected
            again from the inputs that `statistics` come from. Otherwise they are those of the float model.
        parameters: the method's own parameters, for example `pairs=True`.

    Raises:
        UserError: a name or value is unknown, parts make no sense together, or the method finds nothing to work on.
    """
    recipe, scheme = _chosen(method, bits, alpha, parameters, rounding=rounding, ranges=ranges)
    if recipe.trains:
        raise UserError(
            "method: takes gradient steps, for which it needs images; use sqbench.train(model, statistics, images, ...)"
        )
    task = Task(model, statistics, scheme)
    return engine.quantize(task, recipe, propagate=propagate)


def train(
    model: Model,
    statistics: Statistics,
    images: LabelledImages,
    /,
    method: str | Recipe = "qat_lsq",
    bits: str | Scheme = "auto",
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    **parameters: Any,
) -> Model:
    """A model trained while it is quantized. The float model does not change.

    Args:
        images: `examples.training`.
        method: `qat`, `qat_lsq`, or a recipe whose rounding trains.
        bits: as for `quantize`.
        parameters: the method's own parameters, for example `epochs=3`.
        seed: of the order of the images, and of the choice of validation images.
        checkpoint: a file from which an interrupted call resumes.

    Raises:
        UserError: a name or value is unknown, the method does not train, or there is nothing to train on.
    """
    chosen, scheme = _chosen(method, bits, None, parameters)
    if not isinstance(chosen.rounding, Qat):
        raise UserError("method: takes no gradient steps; use sqbench.quantize(model, statistics, ...), or method=qat_lsq")
    return training.fit(Task(model, statistics, scheme), chosen.rounding, images, seed=seed, checkpoint=checkpoint)


def _chosen(
    method: str | Recipe, bits: str | Scheme, alpha: float | str | None, parameters: dict[str, Any], **parts: str | None
) -> tuple[Recipe, Scheme]:
    """The recipe and the scheme. Each is given as a name, as on the command line, or as the object itself."""
    if not isinstance(method, str) and not isinstance(bits, str):  # as in a sweep: composing takes longer than rounding
        bits.check()
        method.check(bits)
        return method, bits
    named = [f"method={method}"] * isinstance(method, str) + [f"bits={bits}"] * isinstance(bits, str)
    values = [f"method.{key}={value}" for key, value in parameters.items()] + [f"alpha={alpha}"] * (alpha is not None)
    values += [f"{axis}={name}" for axis, name in parts.items() if name is not None]
    if not isinstance(method, str) and bits == "auto":
        named = ["method=rtn"]  # objects have no natural scheme
    cfg = compose_config(*named, *(values if isinstance(method, str) else ()))
    found = recipe_of(cfg) if isinstance(method, str) else method
    scheme = scheme_of(cfg) if isinstance(bits, str) else bits
    scheme.check()
    found.check(scheme)
    return found, scheme


def evaluate(model: Model, examples: Examples, reference: Result | None = None, *, name: str = "auto", **settings: Any) -> Result:
    """Metrics and per-example outcomes. With the float model's result as `reference`, the outcomes are paired with it.

    Args:
        settings: of the evaluation, for example `name="latency", repetitions=20`. The others keep the defaults of the command line.

    Raises:
        UserError: the evaluation does not support this kind of model, or has no such setting.
    """
    chosen = natural_evaluation(name, model.kind)
    if model.kind not in (kinds := EVALUATIONS[chosen].kinds):
        raise UserError(f"name={name}: is for {' and '.join(kinds)}, {model.name} reads {model.kind}")
    defaults = own_settings(chosen, model.kind)
    if other := sorted(settings.keys() - defaults.keys()):
        raise UserError(f"{other[0]}={settings[other[0]]}: {known(other[0], defaults)}")
    return EVALUATIONS[chosen].run(model, examples, reference, **defaults | settings)


__all__ = ["allocate", "calibrate", "configure", "evaluate", "load", "quantize", "save", "train"]
