"""What a folder must hold of a quantized model: encoded weights, and all other parameters."""

from collections.abc import Collection
from itertools import chain

import torch
from torch import Tensor, nn

from sqbench.errors import UserError, counted
from sqbench.models.experts import Experts
from sqbench.quant.layers import ActivationQuantizer, Encoded, QuantLayer, StandIn, Stored
from sqbench.quant.tables import TiedLayer


def encoded_parts(module: nn.Module, target: str) -> dict[str, Encoded]:
    """The layers and tables whose weights are encoded, by name. A tied matrix is there as the table and as a `TiedLayer`.

    Args:
        target: the word for `format=`.

    Raises:
        UserError: something else is quantized, which no folder has a place for.
    """
    found: dict[str, Encoded] = {}
    for name, part in module.named_modules():
        if isinstance(part, Encoded):
            found[name] = part
        elif isinstance(part, Stored):
            raise UserError(f"format={target}: {name} is a {type(part).__name__}, which computes in integers; use backend=sim")
        elif isinstance(part, ActivationQuantizer) and not isinstance(module.get_submodule(name.rpartition(".")[0]), QuantLayer):
            raise UserError(f"format={target}: {name} is rounded between layers, which has no place there; use bits.ops=linear")
    return found


def check_names(names: Collection[str], own: nn.Module, target: str, works: str) -> None:
    """Raise UserError for tensors that the float network `own` lacks. Programs would pass over them. `works` says what fits."""
    if strange := sorted(names - own.state_dict().keys()):
        raise UserError(f"format={target}: {counted(strange, 'tensors that the float model lacks')}; {works}")


def check_floats(module: nn.Module, names: Collection[str], target: str) -> None:
    """`check_names` for a module of transformers."""
    with torch.device("meta"):
        own = type(module)(module.config)
    for name, part in module.named_modules():
        if isinstance(part, Experts):
            own.set_submodule(name, Experts(own.get_submodule(name), part.layout))
    check_names(names, own, target, "use corrections=[], or format=onnx")


def others(module: nn.Module, parts: Collection[str]) -> dict[str, Tensor]:
    """All else that a checkpoint has, under the names of the float model: other parameters, and buffers that are stored.

    A tied parameter is there once.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        part = owner.removesuffix(".layer")
        holder = module.get_submodule(part)
        if leaf == "weight" and (part in parts or isinstance(holder, TiedLayer)):
            seen.add(id(tensor))
            continue
        if leaf in module.get_submodule(owner)._non_persistent_buffers_set:
            continue
        if isinstance(holder, StandIn):
            name = f"{part}.{leaf}"
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found
