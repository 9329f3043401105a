"""Checks of what a runtime can run (`backend=openvino`, `backend=onnxruntime`). They run before anything is computed."""

from sqbench.calibration import Statistics
from sqbench.config import device_of
from sqbench.errors import UserError
from sqbench.formats.scheme import Scheme
from sqbench.models import Model, Source
from sqbench.models.functions import untraceable
from sqbench.parts.layer_formats import formats_of
from sqbench.parts.task import Task
from sqbench.quant.access import weight_of
from sqbench.running.resolved import Resolved
from sqbench.runtimes import RUNTIMES, Runtime


def runtime_of(resolved: Resolved) -> Runtime | None:
    """The runtime that a point computes in. None for our own backends, and for the float model, which torch computes."""
    return None if resolved.recipe.is_float else RUNTIMES.get(resolved.backend)


def check_runtime(resolved: Resolved) -> None:
    """Raise UserError for settings that a runtime does not run. Nothing is loaded."""
    runtime = runtime_of(resolved)
    if runtime is None:
        return
    key = f"backend={runtime.name}"
    runtime.require(key)
    if (kind := device_of(resolved.device).type) != "cpu":
        raise UserError(f"device={kind}: must be cpu with {key}")
    if resolved.model.dtype != "float32":
        raise UserError(f"model.dtype={resolved.model.dtype}: must be float32 with {key}")
    if resolved.noise:
        raise UserError(f"noise={resolved.noise}: must be 0 with {key}, whose graph has no place to change inputs")
    if resolved.blockwise:
        raise UserError(f"blockwise=true: must be false with {key}, whose graph is whole in memory")
    if not resolved.recipe.stored:
        check_scheme(runtime, resolved.scheme)


def check_scheme(runtime: Runtime, scheme: Scheme) -> None:
    """Raise UserError if a runtime cannot express a scheme: which field, and what would fit."""
    key = f"backend={runtime.name}"
    if scheme.ops != "linear" and scheme.activations is not None:
        reason = runtime.between.refusal(scheme.activations.ungrouped("token"))
        if reason is not None:
            raise UserError(f"bits.ops={scheme.ops}: must be linear with {key} and bits={scheme.name}; {reason}")
    for index in (0, 1):  # of three layers: one at an edge, and one between
        weights, inputs = scheme.of_layer("", index, 3)
        if (reason := runtime.refusal(weights, inputs)) is not None:
            raise UserError(f"{key}: bits={scheme.name} cannot be written; {reason}")
    for slot, fmt in (("embedding", scheme.embedding), ("head", scheme.head)):
        if fmt is not None and (reason := runtime.refusal(fmt, None)) is not None:
            raise UserError(f"{key}: bits.{slot} cannot be written; {reason}")


def check_model(resolved: Resolved, source: Source, model: Model) -> None:
    """Raise UserError if a runtime cannot express a loaded model, the formats of its layers, or those of a checkpoint."""
    runtime = runtime_of(resolved)
    if runtime is None:
        return
    key = f"backend={runtime.name}"
    if (reason := untraceable(model)) is not None:
        raise UserError(f"{key}: {model.name} cannot be written as a graph: {reason}; use backend=int")
    if source.quantized is not None:
        check_scheme(runtime, source.quantized.scheme)
        return
    formats = formats_of(Task(model, Statistics({}, model.example()), resolved.scheme))
    for name, (weights, inputs) in formats.items():
        runtime.check(key, name, weights, inputs)
    runtime.check_constants(key, model, formats)
    reads = {name: weight_of(model.module.get_submodule(name)).shape[1] for name in formats}
    runtime.check_together({name: (reads[name], inputs) for name, (_, inputs) in formats.items()})
