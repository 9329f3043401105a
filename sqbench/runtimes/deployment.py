"""Deployment: a quantized model that computes in a runtime."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.computed import ComputedRows, computed
from sqbench.models.functions import head_alone, untraceable, without_head
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import ActivationQuantizer, Encoded, QuantLayer
from sqbench.quant.products import placed, products
from sqbench.quant.tables import EncodedTable
from sqbench.runtimes.runtime import Executed, Runtime, Session
from sqbench.runtimes.saturation import EXACT_BITS, saturates


@torch.no_grad()
def deployed(model: Model, runtime: Runtime) -> Model:
    """The model that computes the same function in a runtime. The given model stays as it is.

    The quantized head of a language model is a graph of its own, so that it computes no logits that nobody reads. A head that stays
    in float is computed by torch. The report's `execution` lists kernels with layers, products of activations and reasons, and
    `runtime` the version and how far its outputs are from the simulated ones on the model's example.

    Raises:
        UserError: the runtime is not installed, or cannot express a layer.
    """
    key = f"backend={runtime.name}"
    runtime.require(key)
    check(model, runtime, key)
    function = without_head(model)
    parts, multiplied = parts_of(function.module), products(placed(function.module)).values()
    session = runtime.start(runtime.write(function, parts))
    with_head, head = _head_of(model, runtime)
    result = computed(model, session, headless=True, head=head)
    last = "body" if with_head is None else "forward"
    ours, theirs = (getattr(one, last)(model.example()).float() for one in (model, result))
    report = dict(model.report or {})
    executed = {function.name_in_model(path): one for path, one in session.executed().items()}
    if with_head is not None:
        executed[model.tables()["head"]] = with_head.executed()["0"]
    layers = {name: part for name, part in parts_of(model.module).items() if isinstance(part, QuantLayer)}
    asked = {name: layer.activation is not None for name, layer in layers.items()} | dict.fromkeys(multiplied, True)
    safe = {name for name, layer in layers.items() if layer.format is not None and layer.format.bits <= EXACT_BITS}
    inexact = asked.keys() - safe if any(asked.values()) and saturates(runtime) else set()
    report["execution"] = _entries({name: (integers, executed.get(name)) for name, integers in asked.items()}, inexact)
    report["runtime"] = {
        "version": runtime.version(),
        "largest_difference": float((ours - theirs).abs().max()),
        "largest_output": float(ours.abs().max()),
    }
    return result.with_module(result.module, report)


def _head_of(model: Model, runtime: Runtime) -> tuple[Session, ComputedRows] | tuple[None, None]:
    """The head of a language model in a runtime, and what computes it. Nothing if it is in float, or computed with the rest."""
    if not isinstance(model, LanguageModel) or not isinstance(model.head, QuantLayer):
        return None, None
    session = runtime.start(runtime.write(head_alone(model, model.head), {"0": model.head}), any_rows=True)
    return session, ComputedRows(session, model.head.stored_bytes())


def parts_of(module: nn.Module) -> dict[str, Encoded]:
    """Path -> quantized layer or encoded table."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Encoded)}


def check(model: Model, runtime: Runtime, key: str) -> None:
    """Raise UserError if a runtime cannot express a model: which layer or point, and what would fit."""
    if (why := untraceable(model)) is not None:
        raise UserError(f"{key}: {model.name} cannot be written as a graph: {why}")
    dtype = next(model.module.parameters()).dtype
    if dtype != torch.float32:
        raise UserError(
            f"{key}: computes in float32, and {model.name} is {str(dtype).removeprefix('torch.')}; use model.dtype=float32"
        )
    parts = parts_of(model.module)
    layers = {name: part for name, part in parts.items() if isinstance(part, QuantLayer)}
    for name, part in parts.items():
        if isinstance(part, EncodedTable):
            _check_table(part, key, name)
            runtime.check(key, name, part.format, None)
    for name, layer in layers.items():
        inputs = layer.activation
        if inputs is not None and type(inputs) is not ActivationQuantizer:
            raise UserError(f"{key}: {name} cannot be written; {type(inputs).__name__} rounds its inputs")
        runtime.check(key, name, layer.format, inputs.fmt if inputs is not None else None)
    runtime.check_constants(key, model, layers)
    for path, point in placed(model.module).items():
        runtime.check_between(key, point.site, model.module.get_submodule(path))


def _check_table(table: EncodedTable, key: str, name: str) -> None:
    if type(table.layer).forward is not nn.Embedding.forward:
        raise UserError(
            f"{key}: {name} cannot be written; {type(table.layer).__name__} does more than look rows up; use bits.embedding=null"
        )


def _entries(how: dict[str, tuple[bool, Executed | None]], inexact: Collection[str]) -> list[dict[str, Any]]:
    """Entries of kernel, reason and layers for the record. A reason says what is otherwise than asked.

    Args:
        how: layer or product -> whether it shall multiply integers, and how it is executed.
        inexact: layers and products whose sums of integers can saturate.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for name, (integers, one) in how.items():
        kernel = "unknown" if one is None else one.kernel
        reason = "the runtime does not tell" if one is None else ""
        if one is not None and one.integers != integers:
            reason = "it multiplies integers, and inputs are float" if one.integers else "it multiplies floats"
        elif one is not None and one.integers and name in inexact:
            reason = "its sums can saturate at 16 bits, because this CPU has no VNNI"
        together.setdefault((kernel, reason), []).append(name)
    return [{"kernel": kernel, "reason": reason, "layers": layers} for (kernel, reason), layers in together.items()]
