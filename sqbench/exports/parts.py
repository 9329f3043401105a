"""What a folder must hold of a quantized model: encoded weights, and all other parameters."""

from collections.abc import Collection

from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.models.experts import Experts
from sqbench.quant.layers import ActivationQuantizer, Encoded, QuantLayer, StandIn, Stored
from sqbench.quant.tables import TiedLayer


def encoded_parts(module: nn.Module, target: str) -> dict[str, Encoded]:
    """The layers and tables whose weights are encoded, by name. A tied matrix is there as the table and as a `TiedLayer`.

    Raises:
        UserError: something else is quantized, which no folder has a place for. `target` is the word for `format=`.
    """
    found: dict[str, Encoded] = {}
    for name, part in module.named_modules():
        if isinstance(part, Experts):
            raise UserError(
                f"format={target}: {name} holds experts of a mixture, whose layout is not written yet; use a model without experts"
            )
        if isinstance(part, Encoded):
            found[name] = part
        elif isinstance(part, Stored):
            raise UserError(f"format={target}: {name} is a {type(part).__name__}, which computes in integers; use backend=sim")
        elif isinstance(part, ActivationQuantizer) and not isinstance(module.get_submodule(name.rpartition(".")[0]), QuantLayer):
            raise UserError(f"format={target}: {name} is rounded between layers, which has no place there; use bits.ops=linear")
    return found


def others(module: nn.Module, parts: Collection[str]) -> dict[str, Tensor]:
    """All parameters besides the encoded weights of these parts, under the names of the float model. A tied one is there once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        part = owner.removesuffix(".layer")
        holder = module.get_submodule(part)
        if leaf == "weight" and (part in parts or isinstance(holder, TiedLayer)):
            seen.add(id(parameter))
            continue
        if isinstance(holder, StandIn):
            name = f"{part}.{leaf}"
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found
