"""The data flow of a point: load, calibrate, quantize or train, and evaluate. Read `flow` top to bottom."""

from dataclasses import replace
from functools import partial

import torchvision  # noqa: F401  # torch.fx keeps the frames in which it is imported: later they would be a point's, with its models

from sqbench.data import Examples
from sqbench.evaluation import Result, noise
from sqbench.evaluation.baseline import reference
from sqbench.execution import lower
from sqbench.models import Model
from sqbench.records.provenance import Stopwatch
from sqbench.records.store import Store
from sqbench.running import stages
from sqbench.running.point import Point
from sqbench.running.shared import shared
from sqbench.storage.files import digest


def flow(point: Point, store: Store, watch: Stopwatch) -> tuple[Result, Result | None, Examples]:
    """Load, calibrate, quantize or train, and evaluate. Return the result, the float model's result, and the examples of both.

    There is no result of a float model if a checkpoint has no parent.
    """
    resolved, stored = point.resolved, point.source.quantized
    loaded = stages.load(point, store, watch)
    model, examples, cache = loaded.model, loaded.examples, loaded.cache
    name, evaluation, settings = resolved.evaluation.name, resolved.evaluation.evaluation, resolved.evaluation.used()
    inputs = resolved.evaluation.settings.inputs()
    if resolved.evaluation.settings.chats:
        inputs["chat"] = point.identity["eval"]["chat"]
    judged = settings | ({"inputs": inputs} if inputs else {})
    compared = stored is None or stored.parent or evaluation.beside is not None  # speed is that of the architecture
    with watch.stage("baseline"):
        beside = loaded.swift if evaluation.beside is None else model  # speed is compared with plain torch
        found = partial(reference, beside, examples, name, cache / "baselines", **judged)
        float_result: Result | None = shared("baseline", (*loaded.same, name, digest(judged)), found) if compared else None

    def told(result: Result, quantized: Model | None) -> Result:
        """The result, with the noise of its numbers if `noise` is set."""
        if not resolved.noise:
            return result
        assert float_result is not None
        with watch.stage("noise"):
            found = noise.measure(name, judged, examples, loaded.swift, float_result, quantized, resolved.noise, cache / "noise")
        return replace(result, noise=found)

    if resolved.recipe.is_float:
        assert float_result is not None
        if evaluation.beside is None:
            return told(float_result, None), float_result, examples
        with watch.stage("evaluate"):
            result = evaluation.run(model, examples, float_result, **settings)
        return result, result.baseline or result, examples
    quantized = stages.quantized(loaded, store, watch)
    with watch.stage("lower"):
        executed = lower(quantized, resolved.backend)
        del quantized  # where it is simulated, its codes would stand beside the decoded weights
    with watch.stage("evaluate"):
        result = evaluation.run(executed, examples, float_result, **settings)
    return told(result, executed), result.baseline or float_result, examples
