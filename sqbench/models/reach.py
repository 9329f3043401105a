"""The layers and bare matrices that read a norm's output, directly or through any other functions."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.quant.access import kind_of


def reached(module: nn.Module, forward: Callable[[], Any], norms: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Norm -> the modules whose input depends on its output with no layer or norm in between, in order of execution.

    Modules are layers, and others that hold one matrix (`is_bare`).

    One pass of autograd shows this. Norms write leaves of its graph, and layers write constants. The graph leads from a layer's
    input back to the leaves that it depends on, through views, rolls, paddings, sums and activation functions alike.

    Args:
        norms: names of modules that return one tensor.
    """
    found: dict[str, list[str]] = {name: [] for name in norms}
    written: dict[Tensor, str] = {}  # tensors are hashed by identity

    def write(name: str) -> Callable[..., Tensor]:
        def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            written[leaf] = name
            return leaf.clone()  # a leaf itself must not be written to

        return hook

    def read(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                for norm in {written[leaf] for leaf in _leaves(args[0]) if leaf in written}:
                    if name not in found[norm]:
                        found[norm].append(name)

        return hook

    handles = []
    for name, layer in module.named_modules():
        if name in found:
            handles.append(layer.register_forward_hook(write(name)))
        elif kind_of(layer) is not None:
            handles.append(layer.register_forward_pre_hook(read(name)))
            handles.append(layer.register_forward_hook(lambda layer, args, output: output.detach()))
        elif is_bare(layer):
            handles.append(layer.register_forward_pre_hook(read(name)))
    try:
        with torch.enable_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return {norm: tuple(layers) for norm, layers in found.items()}


def is_bare(module: nn.Module) -> bool:
    """Whether a module that is no layer holds a matrix `weight`, as the router of a mixture of experts does."""
    weight = module._parameters.get("weight")
    return isinstance(weight, Tensor) and weight.dim() == 2 and kind_of(module) is None and not isinstance(module, nn.Embedding)


def _leaves(x: Tensor) -> list[Tensor]:
    """The leaves of the graph that a tensor is computed from."""
    waiting: list[Any] = [x.grad_fn]
    known, leaves = set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        waiting.extend(before for before, _ in node.next_functions)
    return leaves
