"""Mixed precision: each group of sibling layers gets its own width, under an average number of bits."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from sqbench.console.progress import track
from sqbench.errors import UserError
from sqbench.formats.codec import round_trip
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.experts import has_experts
from sqbench.parts.layer_formats import formats_of
from sqbench.parts.task import Task
from sqbench.pipeline.allocation import allocate
from sqbench.quant.access import weight_of, with_weight

NEEDS = frozenset({"blocks"})  # collectors that `mix` reads


@dataclass(frozen=True)
class Portion:
    """A group of sibling layers and the width that it gets.

    Attributes:
        damage: width -> the expected cost of rounding the group to it, in nats per prediction.
    """

    name: str
    layers: tuple[str, ...]
    weights: int
    damage: dict[int, float]
    bits: int


@dataclass(frozen=True)
class Allocation:
    """Widths of all groups.

    Attributes:
        measured: the width at which damage was measured.
        budget: bits per weight on average over the quantized layers. Codes count, scales and zero-points do not.
    """

    portions: tuple[Portion, ...]
    measured: int
    budget: float

    @property
    def average_bits(self) -> float:
        total = sum(portion.weights for portion in self.portions)
        return sum(portion.weights * portion.bits for portion in self.portions) / total

    def applied(self, scheme: Scheme) -> Scheme:
        """The scheme with these widths."""
        return replace(scheme, widths=tuple((layer, portion.bits) for portion in self.portions for layer in portion.layers))

    def about(self) -> dict[str, Any]:
        """The entry for the record. A group's `damage` is at the measured width. The total is at the chosen widths."""
        return {
            "budget": self.budget,
            "average_bits": self.average_bits,
            "measured_bits": self.measured,
            "damage": sum(portion.damage[portion.bits] for portion in self.portions),
            "groups": [
                {"group": one.name, "weights": one.weights, "bits": one.bits, "damage": one.damage[self.measured]}
                for one in self.portions
            ],
        }


def check_mixable(model: Model) -> None:
    """Raise UserError for a mixture of experts. An expert that no example reaches would seem to do no damage at any width."""
    if has_experts(model.module):
        raise UserError(
            f"mixed=auto: {model.name} is a mixture of experts, and the sample reaches only some of them; use mixed=null"
        )


@torch.no_grad()
def measure(task: Task, run: Model) -> dict[str, float]:
    """The cost of rounding each group: mean KL(float || model) over the replay sample, in nats per prediction.

    For each group, the weights of its sibling layers are rounded to nearest in the task's scheme, and one forward pass runs. The
    result does not depend on the method, so all methods and budgets share it.

    Args:
        run: the task's float model. It may use other kernels.

    Raises:
        UserError: the model is a mixture of experts.
    """
    check_mixable(task.model)
    formats, sample = formats_of(task), task.statistics.sample
    groups = task.topology.siblings
    total = dict.fromkeys(groups, 0.0)
    progress = iter(track(range(len(sample) * len(groups)), "allocate"))
    for example in sample.split(1):  # logits of a whole sample of text would be gigabytes
        reference = log_softmax(run.forward(example).float(), dim=-1)
        shares = reference.exp()
        for name, layers in groups.items():
            next(progress)
            rounded = {layer: _rounded(task.model.module.get_submodule(layer), formats[layer][0]) for layer in layers}
            logp = log_softmax(_with_layers(run, rounded, example).float(), dim=-1)
            total[name] += float((reference - logp).mul_(shares).sum(-1).double().mean().clamp(min=0))
    list(progress)
    return {name: value / len(sample) for name, value in total.items()}


def mix(task: Task, measured: dict[str, float], widths: list[int], budget: float) -> Allocation:
    """The widths of least expected damage.

    Damage at other widths is derived from the measured one. The divergence is quadratic in a small error of the logits. That error
    is linear in the errors of the layers' outputs. The energy of the output errors is known at every width (it falls by a factor of
    about 4 with each bit).

    Args:
        measured: the result of `measure` for this task.
    """
    formats, portions = formats_of(task), []
    assert task.scheme.weights is not None
    known = task.scheme.weights.bits
    for name, layers in track(task.topology.siblings.items(), "noise"):
        weights = {layer: weight_of(task.model.module.get_submodule(layer)) for layer in layers}
        grams = {layer: task.statistics.inputs[task.topology.site[layer]].blocks for layer in layers}
        noise = dict.fromkeys((*widths, known), 0.0)
        for bits in noise:
            noise[bits] = sum(_noise(weights[layer], grams[layer], formats[layer][0], bits) for layer in layers)
        damage = {bits: measured[name] * energy / max(noise[known], 1e-30) for bits, energy in noise.items()}
        portions.append(Portion(name, layers, sum(weight.numel() for weight in weights.values()), damage, known))
    offered = [{bits: portion.damage[bits] for bits in widths} for portion in portions]
    chosen = allocate([portion.weights for portion in portions], offered, budget)
    return Allocation(tuple(replace(one, bits=bits) for one, bits in zip(portions, chosen, strict=True)), known, budget)


def _noise(weight: Tensor, gram: Tensor, fmt: Format | None, bits: int) -> float:
    """Squared error of a layer's outputs after its weight [out, in] is rounded to a width, without terms between Gram blocks."""
    assert fmt is not None
    error = (round_trip(weight, replace(fmt, bits=bits)) - weight).float()
    if gram.shape[0] * gram.shape[1] != error.shape[1]:
        return float(error.square().sum())  # a convolution's columns are pixels of a patch, which the Gram blocks do not cover
    blocks = error.unflatten(1, (len(gram), -1)).transpose(0, 1)  # [in / b, out, b]
    return float((torch.bmm(blocks, gram) * blocks).sum())


def _rounded(layer: nn.Module, fmt: Format | None) -> nn.Module:
    assert fmt is not None
    return with_weight(layer, round_trip(weight_of(layer), fmt))


def _with_layers(model: Model, layers: dict[str, nn.Module], inputs: Tensor) -> Tensor:
    """Predictions with some layers replaced. The model does not change."""
    handles = [  # `forward` itself, because a copied layer shares the hooks of its original
        model.module.get_submodule(name).register_forward_hook(lambda module, args, output, layer=layer: layer.forward(*args))
        for name, layer in layers.items()
    ]
    try:
        return model.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
