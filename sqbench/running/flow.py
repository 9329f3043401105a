"""The data flow of a point: load, calibrate, quantize or train, and evaluate. Read `flow` top to bottom."""

from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sqbench import training
from sqbench.calibration import Statistics, calibrate, uncollected
from sqbench.config import device_of
from sqbench.data import Examples
from sqbench.errors import UserError
from sqbench.evaluation import Result, noise
from sqbench.evaluation.baseline import reference
from sqbench.execution import lower
from sqbench.models import Model
from sqbench.parts.task import Task
from sqbench.pipeline import engine
from sqbench.pipeline.mixed import mix
from sqbench.records.provenance import Stopwatch
from sqbench.records.store import Store
from sqbench.rounding.trained import Qat
from sqbench.running import assembly
from sqbench.running.damage import damage
from sqbench.running.needs import collected_for
from sqbench.running.point import Point
from sqbench.running.shared import shared
from sqbench.storage.files import digest


def flow(point: Point, store: Store, watch: Stopwatch) -> tuple[Result, Result | None, Examples]:
    """Load, calibrate, quantize or train, and evaluate. Return the result, the float model's result, and the examples of both.

    There is no result of a float model if a checkpoint has no parent.
    """
    resolved, options = point.resolved, point.resolved.options
    cache = store.root / "cache" if options.cache_dir is None else Path(options.cache_dir).expanduser()
    torch.manual_seed(resolved.seed)
    same_examples = (*_same_weights(point), digest([*point.corpus.identity(resolved.data, resolved.calibration)]))
    same_model = (*same_examples, digest(point.identity["model"]), cache)
    with watch.stage("load"):
        bare = _weights(point)
        examples: Examples = shared(
            "examples", same_examples, lambda: assembly.examples_of(point.corpus, bare, point.source, resolved)
        )
        model: Model = shared("model", same_model, lambda: assembly.with_head(bare, examples, resolved, cache / "heads"))
    recipe, scheme = resolved.recipe, resolved.scheme
    stored = point.source.quantized
    if stored is None:
        engine.check(model, recipe, scheme, propagate=resolved.propagate)  # what does not fit must fail before anything is computed
    name, evaluation, settings = resolved.evaluation.name, resolved.evaluation.evaluation, resolved.evaluation.used()
    judged = settings | ({"inputs": inputs} if (inputs := resolved.evaluation.settings.inputs()) else {})
    compared = stored is None or stored.parent or evaluation.beside is not None  # speed is that of the architecture
    with watch.stage("baseline"):
        swift: Model = shared("swift", same_model, lambda: lower(model, "sim"))  # the same on this machine's faster float kernel
        beside = swift if evaluation.beside is None else model  # speed is compared with plain torch
        found = partial(reference, beside, examples, name, cache / "baselines", **judged)
        float_result: Result | None = shared("baseline", (*same_model, name, digest(judged)), found) if compared else None

    def told(result: Result, quantized: Model | None) -> Result:
        """The result, with the noise of its numbers if `noise` is set."""
        if not resolved.noise:
            return result
        if float_result is None:
            raise UserError(f"noise={resolved.noise}: compares with a float model; use model.parent=..., or noise=0")
        with watch.stage("noise"):
            found = noise.measure(name, judged, examples, swift, float_result, quantized, resolved.noise, cache / "noise")
        return replace(result, noise=found)

    def finished(quantized: Model) -> tuple[Result, Result | None, Examples]:
        with watch.stage("lower"):
            executed = lower(quantized, resolved.backend)
        with watch.stage("evaluate"):
            result = evaluation.run(executed, examples, float_result, **settings)
        return told(result, executed), result.baseline or float_result, examples

    if stored is not None:
        with watch.stage("quantize"):
            quantized = stored.load(model.device)
        return finished(quantized)
    if float_result is not None and recipe.is_float and evaluation.beside is None:
        return told(float_result, None), float_result, examples
    if recipe.is_float:
        with watch.stage("evaluate"):
            result = evaluation.run(model, examples, float_result, **settings)
        return result, result.baseline or result, examples
    with watch.stage("calibrate"):
        search, inside, needs = assembly.search_size(resolved), scheme.ops != "linear", collected_for(resolved)
        kept = cache / "calibration"

        def calibrated() -> Statistics:
            if resolved.propagate:
                return uncollected(examples.calibration, search)  # statistics of a block are collected when it is quantized
            return calibrate(swift, examples.calibration, needs=needs, search=search, points=inside, folder=kept)

        statistics: Statistics = shared("statistics", (*same_model, search, inside, needs, resolved.propagate), calibrated)
    allocation = None
    if resolved.mixed is not None:
        with watch.stage("allocate"):
            assert resolved.budget is not None
            task = Task(model, statistics, scheme)
            allocation = mix(task, damage(task, swift, cache / "damage"), list(resolved.widths), resolved.budget)
        scheme = allocation.applied(scheme)
    if isinstance(recipe.rounding, Qat):
        with watch.stage("train"):
            checkpoint = checkpoint_of(store, point)
            if options.force:
                checkpoint.unlink(missing_ok=True)
            task = Task(model, statistics, scheme)
            images = assembly.training_images(examples, resolved)
            quantized = training.fit(task, recipe.rounding, images, seed=resolved.seed, checkpoint=checkpoint)
    else:
        with watch.stage("quantize"):
            quantized = engine.quantize(Task(model, statistics, scheme), recipe, propagate=resolved.propagate)
    if allocation is not None:
        quantized = quantized.with_module(quantized.module, {**quantized.report, "allocation": allocation.about()})
    return finished(quantized)


def checkpoint_of(store: Store, point: Point) -> Path:
    """The file from which a killed training resumes. It is kept afterwards, because trained weights are costly."""
    return store.folder(point.id) / "checkpoint.safetensors"


def groups_of(point: Point) -> list[tuple[str, ...]]:
    """Patterns that each name one group of sibling layers of the point's model. The model is loaded for this."""
    topology = assembly.backbone(_weights(point), point.resolved).topology
    return [(name,) if topology.chosen((name,)) == layers else layers for name, layers in topology.siblings.items()]


def _same_weights(point: Point) -> tuple[Hashable, ...]:
    model = point.resolved.model
    place = str(device_of(point.resolved.device))
    return point.source.fingerprint, model.dtype, place, tuple(model.keep), point.resolved.blockwise


def _weights(point: Point) -> Model:
    """The loaded model, shared by the points of a process that use the same weights."""
    model: Model = shared("weights", _same_weights(point), lambda: assembly.read(point.source, point.resolved))
    return model
