"""Smoothing groups: a norm and all the linears that read its output, directly or through a change of order or shape."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.folding import Group
from sqbench.models.proofs import origins, prove, repeated
from sqbench.models.reach import is_bare, reached
from sqbench.models.tracing import Trace
from sqbench.quant.access import is_linear, weight_of

Refusal = tuple[str, str]  # (group, reason)

OFFSETS = (0.0, 1.0)  # numbers that a norm may add to its weight: 0, or Gemma's 1


def norm_groups(
    module: nn.Module, forward: Callable[[], Any], trace: Trace, layers: Sequence[str], kept: Sequence[str], affine: Collection[str]
) -> tuple[list[Group], list[Refusal]]:
    """Proven groups in order of execution, and refused groups with reasons. Every norm that a linear reads
    is in one of the two, except those in `affine`.

    The trace shows the linears that read a norm's output directly. Autograd shows the linears that read it through a roll, a window
    partition, a selection of tokens or any other function. Their channels are then matched by scaling them, and the group is proven
    like any other.

    Args:
        layers, kept: names of the layers that are quantized, and of those that stay in float.
        affine: norms that fold into the layer before them. Nothing is left of them to divide.
    """
    direct: dict[str, list[str]] = {}
    for name in (*layers, *kept):
        if (norm := trace.norm_of.get(id(trace.input_of[name]))) is not None:
            direct.setdefault(norm, []).append(name)
    linears = [name for name in layers if is_linear(module.get_submodule(name))]
    found: dict[str, Group] = {}
    refused: dict[str, Refusal] = {}

    def settle(norm: str, readers: Sequence[str], try_: Callable[[Group], tuple[Group, str | None]]) -> None:
        """Put a norm's group into `found` or into `refused`."""
        followers = tuple(name for name in readers if _follows(module, name, norm))
        group = Group("norm", norm, tuple(name for name in readers if name in linears), followers=followers)
        if set(readers) & set(kept):
            refused[norm] = (str(group), "a layer that stays in float reads it too")
            return
        tried = [try_(replace(group, offset=OFFSETS[0]))]
        if tried[0][1] is not None:
            tried += [try_(replace(group, offset=offset)) for offset in OFFSETS[1:]]
        proven = [group for group, reason in tried if reason is None]
        if proven:
            found[norm] = proven[0]
            refused.pop(norm, None)
        else:
            refused[norm] = (str(group), str(tried[0][1]))

    for norm, readers in direct.items():
        if set(readers) & set(linears):
            settle(norm, readers, lambda group: (group, prove(module, group, trace)))

    grouped = {name for group in found.values() for name in group.readers}
    calls = list(trace.calls)
    last = max((calls.index(name) for name in linears if name not in grouped), default=0)
    everywhere = dict.fromkeys(trace.norm_of.values())
    unsettled = [norm for norm in everywhere if norm not in found and norm not in affine and calls.index(norm) < last]
    for norm, others in reached(module, forward, everywhere).items() if unsettled else ():
        if norm in unsettled and set(others) & set(linears) and set(others) != set(direct.get(norm, ())):
            settle(norm, others, lambda group: _matched(module, group, trace))
    ordered = sorted(found.values(), key=lambda group: layers.index(group.readers[0]))
    return ordered, list(refused.values())


def _follows(module: nn.Module, name: str, norm: str) -> bool:
    """Whether a reader of a norm is no layer, and has a matrix with one column for each of the norm's channels."""
    reader, source = module.get_submodule(name), module.get_submodule(norm)
    assert isinstance(source.weight, Tensor)
    return is_bare(reader) and weight_of(reader).shape[1] == len(source.weight)


def _matched(module: nn.Module, group: Group, trace: Trace) -> tuple[Group, str | None]:
    """A group with its readers' channels matched by scaling, and the reason if it is refused."""
    if reason := repeated(group, trace):
        return group, reason
    first, *others = origins(module, group, trace)
    if first is None or any(other is None for other in others):
        return group, "a function that mixes or bends channels lies between them"
    if not all(torch.equal(first, other) for other in others if other is not None):
        return group, "its readers take its channels in different orders"
    straight = torch.equal(first, torch.arange(len(first)))
    group = replace(group, origin=None if straight else first)
    return group, prove(module, group, trace)
