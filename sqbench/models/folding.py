"""Folding moves scales between layers, so that a model computes the same function with other numbers.

Parameters are replaced, never written to. Other models that share the tensors (`share`) do not change.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sqbench.quant.access import set_weight, weight_of


@dataclass(frozen=True)
class Group:
    """A place where scales can move from the output channels of `source` into the input channels of `readers`.

    Attributes:
        source: a norm (kind `norm`) or a linear (kind `pair`).
        readers: linears that read it.
        origin: [in_features of the readers] the source's output channel of each input channel; None means one to one.
            Grouped-query attention repeats channels of v on the way to o.
        offset: the number that the norm adds to its weight before it multiplies (Gemma's RMSNorm: 1).
        followers: other modules with a matrix that reads the source, one to one. They stay in float, and their columns follow.
            The router of a mixture of experts is one.
    """

    kind: str
    source: str
    readers: tuple[str, ...]
    origin: Tensor | None = field(default=None, compare=False)
    offset: float = 0.0
    followers: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = dict.fromkeys(reader.rpartition(".")[2] for reader in (*self.readers, *self.followers))  # experts share theirs
        return f"{self.source} -> {', '.join(names)}"

    def spread(self, scale: Tensor) -> Tensor:
        """Turn one factor per source channel into one per reader input channel."""
        return scale if self.origin is None else scale[self.origin.to(scale.device)]

    def gather(self, per_input: Tensor) -> Tensor:
        """Turn one non-negative value per reader input into one per source channel: the largest of the inputs that it feeds."""
        if self.origin is None:
            return per_input
        origin = self.origin.to(per_input.device)
        return per_input.new_zeros(int(origin.max()) + 1).scatter_reduce(0, origin, per_input, "amax", include_self=False)


def wide(value: Tensor) -> Tensor:
    """The values in float32 at least. Half precision may hold the product of a factor and a parameter, but not the factor."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def divide_norm(norm: nn.Module, scale: Tensor, offset: float = 0.0) -> None:
    """Divide a norm's output by `scale` [channels]: its weight, and its bias if it has one."""
    for name, parameter in list(norm.named_parameters(recurse=False)):
        shift = offset if name == "weight" else 0.0
        divided = (wide(parameter) + shift) / scale - shift
        setattr(norm, name, nn.Parameter(divided.to(parameter.dtype), requires_grad=False))


def divide_outputs(linear: nn.Module, scale: Tensor) -> None:
    """Divide a linear's output by `scale` [out_features]: the rows of its weight, and its bias if it has one."""
    weight = weight_of(linear)
    set_weight(linear, (wide(weight) / scale.unsqueeze(1)).to(weight.dtype))
    if isinstance(linear.bias, Tensor):
        linear.bias = nn.Parameter((wide(linear.bias) / scale).to(weight.dtype), requires_grad=False)


def multiply_inputs(linear: nn.Module, scale: Tensor) -> None:
    """Multiply a linear's input by `scale` [in_features]: the columns of its weight."""
    weight = weight_of(linear)
    set_weight(linear, (wide(weight) * scale).to(weight.dtype))


def divide_source(source: nn.Module, group: Group, scale: Tensor) -> None:
    """Divide the output of a group's source by `scale` [channels of the source]."""
    if group.kind == "norm":
        divide_norm(source, scale, group.offset)
    else:
        divide_outputs(source, scale)


def fold(module: nn.Module, group: Group, scale: Tensor, root: str = "") -> None:
    """Divide the source's output channels by `scale` [channels of the source] and multiply the readers' inputs by it.

    Parameters are replaced, never written to, so a model that shares them does not change. `root` is the name of `module` itself.
    """

    def find(name: str) -> nn.Module:
        return module.get_submodule(name.removeprefix(root).removeprefix("."))

    divide_source(find(group.source), group, scale)
    for name in (*group.readers, *group.followers):
        multiply_inputs(find(name), group.spread(scale))


def share(module: nn.Module) -> nn.Module:
    """A new module tree over the same tensors. Replacing its layers does not change the original. It needs no memory."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def random_scale(channels: int, seed: int, device: torch.device, exponents: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Distinct powers of 2 in random order, with exponents evenly spaced between two bounds: [channels] float32."""
    generator = torch.Generator().manual_seed(seed)
    low, high = exponents
    steps = torch.randperm(channels, generator=generator).double() / max(channels - 1, 1)
    return (2.0 ** ((high - low) * steps + low)).float().to(device)
