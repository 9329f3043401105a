"""The flow of tensors between quantized layers in one forward pass: which layers read the same tensor, and where outputs go.

Object identity tells tensors apart, as in `sqbench.models.topology`. A fusion that follows from it is checked before it stays.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from sqbench.quant.layers import QuantLayer, version_of

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "silu": silu,
}


@dataclass(frozen=True)
class Chain:
    """A layer whose output one module reads: an activation function, another layer, or a function that a layer reads in turn.

    Attributes:
        writer, reader: names of quantized layers. The reader may be None.
        function: name of the activation function after the writer. None if there is none.
    """

    writer: str
    function: str | None
    reader: str | None


@dataclass(frozen=True)
class Flow:
    """Quantized layers in order of execution, grouped by the tensor that they read, and chains of them."""

    readers: tuple[tuple[str, ...], ...]
    chains: tuple[Chain, ...]


@dataclass
class _Call:
    """One call of a layer, or of another module without submodules."""

    name: str
    module: nn.Module
    source: int | None  # the call that wrote its input
    input: Tensor  # kept alive, as is the output, so that no other tensor gets the same id
    version: int  # of the input
    output: Tensor
    readers: list[int]


def function_of(module: nn.Module) -> str | None:
    """The name in `FUNCTIONS` of the function that a module computes, whatever its class. None if it computes none of them."""
    if next(module.children(), None) is not None or next(module.parameters(), None) is not None:
        return None
    x = torch.linspace(-8, 8, 1025).view(1, 1, -1)
    try:
        y = module(x.clone())
    except (RuntimeError, TypeError, ValueError, IndexError):  # it needs another shape, so it is no activation function
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    return next((name for name, function in FUNCTIONS.items() if torch.allclose(function(x), y, rtol=0, atol=1e-5)), None)


@torch.no_grad()
def watch(module: nn.Module, forward: Callable[[], Any]) -> Flow:
    """The flow of one forward pass over a small batch."""
    calls: list[_Call] = []
    source: dict[int, int] = {}
    entered: dict[str, tuple[Tensor, int]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                entered[name] = args[0], version_of(args[0])

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name not in entered or not isinstance(output, Tensor):
                return
            x, version = entered.pop(name)
            if output is x and not isinstance(layer, QuantLayer) and function_of(layer) is None:
                return  # an identity, or dropout in evaluation: the tensor keeps its writer
            writer = source.get(id(x))
            if writer is not None:
                calls[writer].readers.append(len(calls))
            source[id(output)] = len(calls)
            calls.append(_Call(name, layer, writer, x, version, output, []))

        return hook

    handles = []
    for name, layer in _units(module):
        handles += [layer.register_forward_pre_hook(before(name)), layer.register_forward_hook(after(name))]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return _flow(calls)


def _units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The quantized layers, and the other modules without submodules."""
    for name, child in module.named_children():
        if isinstance(child, QuantLayer) or not list(child.children()):
            yield prefix + name, child
        else:
            yield from _units(child, f"{prefix}{name}.")


def _flow(calls: list[_Call]) -> Flow:
    often = {name for name, count in Counter(call.name for call in calls).items() if count > 1}
    layers = [call for call in calls if isinstance(call.module, QuantLayer)]
    readers: dict[tuple[Any, ...], list[str]] = {}
    for call in layers:
        key = (call.name,) if call.name in often else (id(call.input), call.version, call.source)
        names = readers.setdefault(key, [])
        names += [call.name] * (call.name not in names)

    def sole_reader(call: _Call) -> _Call | None:
        found = calls[call.readers[0]] if len(call.readers) == 1 else None
        return None if found is None or found.name in often else found

    chains = []
    for call in layers:
        reader = None if call.name in often else sole_reader(call)
        function = None
        if reader is not None and function_of(reader.module) is not None:
            function, reader = reader.name, sole_reader(reader)
        if reader is not None and not isinstance(reader.module, QuantLayer):
            reader = None
        if function is not None or reader is not None:
            chains.append(Chain(call.name, function, None if reader is None else reader.name))
    return Flow(tuple(tuple(names) for names in readers.values()), tuple(chains))
