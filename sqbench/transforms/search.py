"""Choice among candidate scales by the error that they cause in a block's output."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.console.progress import track
from sqbench.formats.codec import round_trip
from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.models.experts import feeding, idle
from sqbench.models.folding import Group, share, wide
from sqbench.models.tracing import common_parent, first_tensor
from sqbench.parts.layer_formats import formats_of
from sqbench.parts.task import Task
from sqbench.quant.access import set_weight, weight_of
from sqbench.quant.layers import ActivationQuantizer

Activation = Callable[[Group, Tensor], Limits]

FIRST_SHARE = 4  # all candidates run on this fraction, 1 / FIRST_SHARE, of the sample
FINALISTS = 3  # and this many of them on the rest. In SmolLM2-135M, 31 of 32 groups then choose as on the whole sample.


def raced(candidates: int) -> float:
    """The number of whole passes over the sample that `block_losses` makes for this many candidates."""
    return candidates / FIRST_SHARE + min(candidates, FINALISTS + 1) * (1 - 1 / FIRST_SHARE)


@torch.no_grad()
def block_losses(
    task: Task, groups: Sequence[Group], candidates: Callable[[Group], Sequence[Tensor]], activation: Activation | None = None
) -> dict[Group, Tensor]:
    """The mean squared error of each group's block output for each candidate scale: group -> [candidates] float64.

    The block is the innermost module that holds all of the group's readers: self-attention for q, k, v, the MLP for gate, up. A
    single reader is its own block. The readers get Q(W * s) / s in place of W, the weight that folding would give them. The rest
    stays float. Lin et al., 2023, section 3.2, has the same objective.

    The search is a race. All candidates run on the first quarter of the replay sample. The best few, and the first candidate as the
    reference, also run on the rest. Their losses are those of the whole sample. The losses of the others are infinite.

    Args:
        activation: the ranges of a group's smoothed input, if inputs are quantized too.
    """
    sample = task.statistics.sample
    scales = {group: candidates(group) for group in groups}
    size = max(1, len(sample) // FIRST_SHARE)
    if size == len(sample) or all(len(tried) <= FINALISTS + 1 for tried in scales.values()):
        return _losses(task, sample, scales, activation)
    losses = _losses(task, sample[:size], scales, activation)
    kept = {
        group: sorted({0, *loss.topk(min(FINALISTS, len(loss)), largest=False).indices.tolist()}) for group, loss in losses.items()
    }
    rest = _losses(task, sample[size:], {group: [scales[group][index] for index in kept[group]] for group in groups}, activation)
    for group, loss in losses.items():
        whole = torch.full_like(loss, torch.inf)
        whole[kept[group]] = (loss[kept[group]] * size + rest[group] * (len(sample) - size)) / len(sample)
        losses[group] = whole
    return losses


def _losses(
    task: Task, sample: Tensor, scales: Mapping[Group, Sequence[Tensor]], activation: Activation | None
) -> dict[Group, Tensor]:
    """The losses of candidate scales on a sample, in one batch: group -> [candidates] float64.

    Blocks are searched while the float model runs, so only one block's input is alive at a time.
    """
    formats = formats_of(task)
    module = share(task.model.module)
    called = {name for name, _ in module.named_modules()}
    by_block: dict[str, list[Group]] = {}
    for group in scales:
        by_block.setdefault(common_parent(group.readers, called), []).append(group)
    losses: dict[Group, Tensor] = {}
    progress = iter(track(range(len(scales)), "search"))
    busy = False

    def searched(name: str) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal busy
            if busy:  # this block runs inside a block that is being tried
                return
            busy = True
            for group in by_block[name]:
                next(progress)
                losses[group] = _try(module, block, args, kwargs, first_tensor(output), group, scales[group], formats, activation)
            busy = False

        return hook

    handles = [module.get_submodule(name).register_forward_hook(searched(name), with_kwargs=True) for name in by_block]
    try:
        with feeding(module, idle):  # so that every layer runs
            task.model.with_module(module, None).body(sample)
    finally:
        for handle in handles:
            handle.remove()
        list(progress)
    return losses


def _try(
    module: nn.Module,
    block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reference: Tensor,
    group: Group,
    candidates: Sequence[Tensor],
    formats: Mapping[str, tuple[Format | None, Format | None]],
    activation: Activation | None,
) -> Tensor:
    """The losses of one block. Each candidate is put in place and run, and the weights are restored at the end.

    Args:
        formats: the formats of the layers that are quantized.
    """
    quantized = [name for name in group.readers if name in formats]
    readers = [module.get_submodule(name) for name in quantized]
    originals = [reader.weight for reader in readers]
    floats = [weight_of(reader) for reader in readers]
    losses = torch.zeros(len(candidates), dtype=torch.float64)
    for index, scale in enumerate(candidates):
        spread = group.spread(scale)
        handles = []
        for name, reader, weight in zip(quantized, readers, floats, strict=True):
            fmt, inputs = formats[name]
            if fmt is not None:
                folded = (wide(weight) * spread).to(weight.dtype)
                set_weight(reader, (wide(round_trip(folded, fmt)) / spread).to(weight.dtype))
            if inputs is not None and activation is not None:
                quantizer = ActivationQuantizer(inputs, None if inputs.dynamic else activation(group, scale))
                handles.append(reader.register_forward_pre_hook(partial(_through, quantizer, spread)))
        output = first_tensor(block(*args, **kwargs))
        losses[index] = (output - reference).double().square().mean().item()
        for handle in handles:
            handle.remove()
    for reader, original in zip(readers, originals, strict=True):
        reader.weight = original
    return losses


def _through(quantizer: ActivationQuantizer, scale: Tensor, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The input of a reader that is divided by a scale [channels], quantized, and multiplied by the scale again."""
    x = args[0]
    return ((quantizer((wide(x) / scale).to(x.dtype)) * scale).to(x.dtype), *args[1:])
