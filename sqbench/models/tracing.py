"""One recorded forward pass on a small batch: the arguments of every module, and a way to run any part of the model again."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.batchnorm import is_batchnorm
from sqbench.quant.access import kind_of


@dataclass
class Trace:
    """Calls recorded during one forward pass on a small batch."""

    layers: list[str] = field(default_factory=list)
    input_of: dict[str, Tensor] = field(default_factory=dict)  # kept alive, so that ids stay unique
    norm_of: dict[int, str] = field(default_factory=dict)  # id of an output tensor -> the norm that wrote it
    layer_of: dict[int, str] = field(default_factory=dict)  # id of an output tensor -> the layer that wrote it
    batchnorms: list[tuple[str, str]] = field(default_factory=list)  # (layer, the BatchNorm that reads its output)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    often: set[str] = field(default_factory=set)
    outputs: list[Tensor] = field(default_factory=list)


def trace_calls(module: nn.Module, forward: Callable[[], Any]) -> Trace:
    trace, handles = Trace(), []

    def before(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in trace.calls:
                trace.often.add(name)
            trace.calls[name] = (_copied(args), _copied(kwargs))  # a caller may later add to a list that it passed
            if args and isinstance(args[0], Tensor):
                if kind_of(layer) is not None:
                    trace.layers.append(name)
                    trace.input_of[name] = args[0]
                elif is_batchnorm(layer) and id(args[0]) in trace.layer_of:
                    trace.batchnorms.append((trace.layer_of[id(args[0])], name))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                trace.outputs.append(output)
                (trace.norm_of if kind_of(layer) is None else trace.layer_of)[id(output)] = name

        return hook

    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(before(name), with_kwargs=True))
        weight = getattr(layer, "weight", None)
        simple = not list(layer.children()) or is_batchnorm(layer)  # timm's BatchNorms carry an activation
        is_norm = isinstance(weight, Tensor) and weight.dim() == 1 and simple
        if is_norm or kind_of(layer) is not None:
            handles.append(layer.register_forward_hook(after(name)))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _copied(value: Any) -> Any:
    """New containers of the same kinds around the same tensors."""
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value) if type(value) in (tuple, list) else value
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


def common_parent(names: tuple[str, ...], called: Any) -> str:
    """The innermost module in `called` that holds all of `names`. A single name gives that module itself if it was called."""
    paths = [name.split(".") for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    while shared and ".".join(shared) not in called:
        shared.pop()
    return ".".join(shared)


def first_tensor(output: Any) -> Tensor:
    """The tensor that a module returns, or the first of a tuple or model output."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-30))


@dataclass(frozen=True)
class Block:
    """The innermost called module around some layers, and the call that the trace recorded, in float32 at least.

    Half precision cannot tell a legal fold from an illegal one, nor two channels apart. A half-precision block is copied.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def around(cls, module: nn.Module, names: tuple[str, ...], trace: Trace) -> "Block":
        name = common_parent(names, trace.calls)
        block, (args, kwargs) = module.get_submodule(name), trace.calls[name]
        if is_half(block):
            block, args, kwargs = copy.deepcopy(block).float(), widened(args), widened(kwargs)
        return cls(block, name, args, kwargs)

    def inside(self, name: str) -> nn.Module:
        return self.module.get_submodule(name.removeprefix(self.name).removeprefix("."))

    def run(self, module: nn.Module | None = None) -> Tensor:
        """The tensor that the block, or `module` in its place, returns for the traced call."""
        return first_tensor((module or self.module)(*self.args, **self.kwargs))


def is_half(module: nn.Module) -> bool:
    """Whether any parameter of a module is in half precision."""
    return any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters())


def widened(value: Any) -> Any:
    """The arguments with all floating-point tensors, at any depth, as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(widened(item) for item in value)
    if isinstance(value, dict):
        return {key: widened(item) for key, item in value.items()}
    return value
