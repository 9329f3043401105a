"""Proofs that a scale may move between layers. They run on the float model, in the innermost module that holds all these layers.

The code knows no architecture. Scaled channels show where they go. Every fold is tried before it is used.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sqbench.models.batchnorm import after_fold, fold_batchnorm
from sqbench.models.folding import Group, divide_source, fold, multiply_inputs, random_scale, share
from sqbench.models.tracing import Block, Trace, relative_difference
from sqbench.quant.access import weight_of

# Largest relative difference between outputs before and after a fold that still counts as the same function. Illegal folds change
# outputs by a quarter or more. Legal folds change them only by rounding (proofs run in float32 at least).
TOLERANCE = 1e-4

# Bounds for the exponents of 2 of a proof's factors. Factors near 1 do not show a clamp or a threshold that the example does not
# reach. Wide factors make the tensor between two layers up to 1,000 times larger or smaller.
NEAR, WIDE = (-1.0, 1.0), (-10.0, 10.0)


def channels_of_source(source: nn.Module, kind: str) -> int:
    """The number of channels that a group's source writes."""
    assert isinstance(source.weight, Tensor)
    return len(source.weight) if kind == "norm" else len(weight_of(source))


def repeated(group: Group, trace: Trace) -> str | None:
    """The reason why a group cannot be tried: it runs more than once. None if it runs once."""
    often = [name for name in (group.source, *group.readers, *group.followers) if name in trace.often]
    return f"{often[0]} runs more than once per forward pass" if often else None


def prove(module: nn.Module, group: Group, trace: Trace) -> str | None:
    """Fold with random scales inside the innermost module around the group. Return None if its output stays, else the reason."""
    if reason := repeated(group, trace):
        return reason
    block = Block.around(module, (group.source, *group.readers, *group.followers), trace)
    weight, place = block.inside(group.source).weight, block.name or "the model"
    assert isinstance(weight, Tensor)
    channels, before = channels_of_source(block.inside(group.source), group.kind), block.run()

    def error(exponents: tuple[float, float]) -> float:
        folded = share(block.module)
        fold(folded, group, random_scale(channels, 1, weight.device, exponents), block.name)
        return relative_difference(before, block.run(folded))

    if (wide := error(WIDE)) <= TOLERANCE:
        return None
    if (near := error(NEAR)) <= TOLERANCE:
        return (
            f"folding scales far from 1 changes the output of {place} by {wide:.2g} (relative), and scales near 1 do not:"
            " a clamp or a threshold lies between"
        )
    return f"folding random scales changes the output of {place} by {near:.2g} (relative): something else reads it"


def prove_batchnorm(module: nn.Module, layer: str, norm: str, trace: Trace) -> str | None:
    """Fold a BatchNorm into the layer before it. Return None if the output of the innermost module stays, else the reason.

    The innermost module is the one around both. The folded layer must also equal the two on inputs up to 1,000 times larger. This
    finds classes of norms that clamp.
    """
    if often := {layer, norm} & trace.often:
        return f"{min(often)} runs more than once per forward pass"
    block = Block.around(module, (layer, norm), trace)
    inner = [name.removeprefix(block.name).removeprefix(".") for name in (layer, norm)]
    folded = share(block.module)
    fold_batchnorm(folded, *inner)
    error = relative_difference(block.run(), block.run(folded))
    if not error <= TOLERANCE:
        return f"folding it into {layer} changes the output of {block.name or 'the model'} by {error:.2g} (relative)"
    first, second, alone = block.inside(layer), block.inside(norm), folded.get_submodule(inner[0])
    after = after_fold(second)
    for factor in (30, 1000):
        x = trace.input_of[layer].to(weight_of(first).dtype) * factor
        error = relative_difference(second(first(x)), after(alone(x)))
        if not error <= TOLERANCE:
            return f"folding it into {layer} changes what it writes by {error:.2g} (relative) on inputs {factor} times larger"
    return None


def origins(module: nn.Module, group: Group, trace: Trace) -> list[Tensor | None]:
    """For each reader, the source channel that each of its input channels is proportional to: [in_features].

    The source's channels are scaled by distinct factors. The readers' inputs in the innermost module around them show the factors.
    A reader gets None if one of its inputs is proportional to no channel, or if it reads only some channels.
    """
    if repeated(group, trace):
        return [None for _ in group.readers]
    block = Block.around(module, (group.source, *group.readers, *group.followers), trace)
    source, readers = block.inside(group.source), [block.inside(name) for name in group.readers]
    assert isinstance(source.weight, Tensor)
    scale = random_scale(channels_of_source(source, group.kind), 0, source.weight.device, NEAR)
    scaled: dict[str, Tensor] = {}
    for name in (group.source, *group.followers):  # what followers compute stays: a router must send tokens to the same experts
        part = share(block.inside(name))
        divide_source(part, group, 1 / scale) if name == group.source else multiply_inputs(part, 1 / scale)
        place = name.removeprefix(block.name).removeprefix(".")
        scaled |= {f"{place}.{own}": value for own, value in part.named_parameters()}
    seen: dict[nn.Module, list[Tensor]] = {reader: [] for reader in readers}

    def note(reader: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[reader].append(args[0].double().flatten(0, -2))

    handles = [reader.register_forward_pre_hook(note) for reader in readers]
    try:
        block.run()
        functional_call(block.module, scaled, block.args, block.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [_origin(plain, changed, scale.double()) for plain, changed in (seen[reader] for reader in readers)]


def _origin(plain: Tensor, scaled: Tensor, scale: Tensor) -> Tensor | None:
    """The source channel of each input, found by its factor: [in_features]. None if that fails or a channel has no reader."""
    energy = plain.square().sum(0)
    ratio = (plain * scaled).sum(0) / energy.clamp(min=1e-30)
    origin = (ratio.unsqueeze(1) - scale).abs().argmin(1)
    residual = ((scaled - plain * scale[origin]).square().sum(0) / energy.clamp(min=1e-30)).sqrt()
    silent = energy == 0  # a ReLU that is off for the whole example
    if bool((residual > 10 * TOLERANCE)[~silent].any()) or bool(silent.all()):
        return None
    if silent.any():
        straight = torch.arange(len(origin), device=origin.device)
        if len(origin) != len(scale) or not torch.equal(origin[~silent], straight[~silent]):
            return None  # the source of the silent channels is unknown
        origin = straight
    return origin.cpu() if len(origin.unique()) == len(scale) else None
