"""Deployment: a quantized model that computes in a runtime."""

from typing import Any

import torch

from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.computed import computed
from sqbench.models.functions import untraceable, without_head
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.quant.products import placed, products
from sqbench.runtimes.runtime import Executed, Runtime


@torch.no_grad()
def deployed(model: Model, runtime: Runtime) -> Model:
    """The model that computes the same function in a runtime. The given model stays as it is.

    A head that stays in float is computed by torch. The report's `execution` lists kernels with layers, products of activations and
    reasons, and `runtime` the version and how far its outputs are from the simulated ones on the model's example.

    Raises:
        UserError: the runtime is not installed, or cannot express a layer.
    """
    key = f"backend={runtime.name}"
    runtime.require(key)
    check(model, runtime, key)
    function = without_head(model)
    layers = quantized_layers(function.module)
    multiplied = products(placed(function.module)).values()
    session = runtime.start(runtime.write(function, layers))
    result = computed(model, session, headless=True)
    ours, theirs = model.body(model.example()).float(), result.body(model.example()).float()
    report = dict(model.report or {})
    found = session.executed()
    asked = {function.name_in_model(path): (layer.activation is not None, found.get(path)) for path, layer in layers.items()}
    report["execution"] = _entries(asked | {name: (True, found.get(name)) for name in multiplied})
    report["runtime"] = {
        "version": runtime.version(),
        "largest_difference": float((ours - theirs).abs().max()),
        "largest_output": float(ours.abs().max()),
    }
    return result.with_module(result.module, report)


def quantized_layers(module: torch.nn.Module) -> dict[str, QuantLayer]:
    """Path -> quantized layer."""
    return {path: part for path, part in module.named_modules() if isinstance(part, QuantLayer)}


def check(model: Model, runtime: Runtime, key: str) -> None:
    """Raise UserError if a runtime cannot express a model: which layer or point, and what would fit."""
    if (why := untraceable(model)) is not None:
        raise UserError(f"{key}: {model.name} cannot be written as a graph: {why}")
    dtype = next(model.module.parameters()).dtype
    if dtype != torch.float32:
        raise UserError(
            f"{key}: computes in float32, and {model.name} is {str(dtype).removeprefix('torch.')}; use model.dtype=float32"
        )
    layers = quantized_layers(model.module)
    for name, layer in layers.items():
        inputs = layer.activation
        if inputs is not None and type(inputs) is not ActivationQuantizer:
            raise UserError(f"{key}: {name} cannot be written; {type(inputs).__name__} rounds its inputs")
        runtime.check(key, name, layer.format, inputs.fmt if inputs is not None else None)
    runtime.check_constants(key, model, layers)
    for path, point in placed(model.module).items():
        runtime.check_between(key, point.site, model.module.get_submodule(path))


def _entries(how: dict[str, tuple[bool, Executed | None]]) -> list[dict[str, Any]]:
    """Entries of kernel, reason and layers for the record. A reason says what is otherwise than asked.

    Args:
        how: layer or product -> whether it shall multiply integers, and how it is executed.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for name, (integers, one) in how.items():
        kernel = "unknown" if one is None else one.kernel
        reason = "the runtime does not tell" if one is None else ""
        if one is not None and one.integers != integers:
            reason = "it multiplies integers, and inputs are float" if one.integers else "it multiplies floats"
        together.setdefault((kernel, reason), []).append(name)
    return [{"kernel": kernel, "reason": reason, "layers": layers} for (kernel, reason), layers in together.items()]
