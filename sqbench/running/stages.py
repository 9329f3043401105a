"""The stages of a point before it is evaluated: load, calibrate, and quantize or train. Points of a process share what is equal."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sqbench import training
from sqbench.calibration import Statistics, calibrate, uncollected
from sqbench.config import device_of
from sqbench.data import Examples
from sqbench.execution import lower
from sqbench.models import Model
from sqbench.parts.task import Task
from sqbench.pipeline import engine
from sqbench.pipeline.mixed import check_mixable, mix
from sqbench.records.provenance import Stopwatch
from sqbench.records.store import Store
from sqbench.rounding.peer import Peer
from sqbench.rounding.trained import Qat
from sqbench.running import assembly, foreign
from sqbench.running.damage import damage
from sqbench.running.deployable import check_model
from sqbench.running.needs import collected_for
from sqbench.running.point import Point
from sqbench.running.shared import shared
from sqbench.storage.files import digest


@dataclass(frozen=True)
class Loaded:
    """A point whose float model and examples are loaded.

    If a checkpoint has no parent, its decoded weights are in the place of the float model.

    Attributes:
        cache: the folder of what points share on disk.
        same: the key of what is shared in memory by points of this model and these examples.
    """

    point: Point
    model: Model
    examples: Examples
    cache: Path
    same: tuple[Hashable, ...]

    @cached_property
    def swift(self) -> Model:
        """The same float model on this machine's faster float kernel."""
        found: Model = shared("swift", self.same, lambda: lower(self.model, "sim"))
        return found


def load(point: Point, store: Store, watch: Stopwatch) -> Loaded:
    """Load the float model and the examples of a point.

    Raises:
        UserError: they do not fit each other, or the model does not fit the scheme. Nothing is computed before that.
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
    if point.source.quantized is None:
        engine.check(model, resolved.recipe, resolved.scheme, propagate=resolved.propagate)
    if resolved.mixed is not None:
        check_mixable(model)
    check_model(resolved, point.source, model)
    return Loaded(point, model, examples, cache, same_model)


def quantized(loaded: Loaded, store: Store, watch: Stopwatch) -> Model:
    """The quantized model of a point: read from a checkpoint, made by another tool, or calibrated and then quantized or trained."""
    point, model = loaded.point, loaded.model
    resolved = point.resolved
    recipe, scheme = resolved.recipe, resolved.scheme
    if point.source.quantized is not None:
        with watch.stage("quantize"):
            return point.source.quantized.load(model.device)
    if isinstance(recipe.rounding, Peer):
        with watch.stage("quantize"):
            return foreign.quantized(point, model, loaded.examples.calibration, loaded.cache / "peers")
    statistics = _calibrated(loaded, watch)
    allocation = None
    if resolved.mixed is not None:
        with watch.stage("allocate"):
            assert resolved.budget is not None
            task = Task(model, statistics, scheme)
            allocation = mix(task, damage(task, loaded.swift, loaded.cache / "damage"), list(resolved.widths), resolved.budget)
        scheme = allocation.applied(scheme)
    if isinstance(recipe.rounding, Qat):
        with watch.stage("train"):
            checkpoint = checkpoint_of(store, point)
            if resolved.options.force:
                checkpoint.unlink(missing_ok=True)
            task = Task(model, statistics, scheme)
            images = assembly.training_images(loaded.examples, resolved)
            found: Model = training.fit(task, recipe.rounding, images, seed=resolved.seed, checkpoint=checkpoint)
    else:
        with watch.stage("quantize"):
            found = engine.quantize(Task(model, statistics, scheme), recipe, propagate=resolved.propagate)
    if allocation is not None:
        found = found.with_module(found.module, {**found.report, "allocation": allocation.about()})
    return found


def _calibrated(loaded: Loaded, watch: Stopwatch) -> Statistics:
    resolved, inputs = loaded.point.resolved, loaded.examples.calibration
    with watch.stage("calibrate"):
        search, inside, needs = assembly.search_size(resolved), resolved.scheme.ops != "linear", collected_for(resolved)

        def calibrated() -> Statistics:
            if resolved.propagate:
                return uncollected(inputs, search)  # statistics of a block are collected when it is quantized
            folder = loaded.cache / "calibration"
            return calibrate(loaded.swift, inputs, needs=needs, search=search, points=inside, folder=folder)

        found: Statistics = shared("statistics", (*loaded.same, search, inside, needs, resolved.propagate), calibrated)
    return found


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
    # The preprocessing of images and the chat template of a tokenizer are parts of the model, and the fingerprint has neither.
    chats = [(point.identity[part] or {}).get("chat") for part in ("eval", "calibration")]
    read_by = digest([point.resolved.data.transform, *chats])
    return point.source.fingerprint, model.dtype, place, tuple(model.keep), point.resolved.blockwise, read_by


def _weights(point: Point) -> Model:
    """The loaded model, shared by the points of a process that use the same weights."""
    model: Model = shared("weights", _same_weights(point), lambda: assembly.read(point.source, point.resolved))
    return model
