"""A check of changes with the scales of a method, against the float model on inputs that calibration saw.

A fold was proven on a small example. Real inputs may meet a clamp, a threshold or another reader. A factor may leave the range of
half precision. One pass of the float model over the replay sample finds this. The innermost module around each fold runs a second
time with the same input, folded.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sqbench.models.folding import share
from sqbench.models.proofs import TOLERANCE
from sqbench.models.tracing import first_tensor, is_half, widened
from sqbench.parts.task import Task
from sqbench.transforms.base import Change

ROUNDINGS = 100  # steps of half precision. Rounding changes an output by a few steps, an overflow by far more.
FLOOR = 0.01  # of the typical row's size, because a row near 0 has no useful relative error

Call = tuple[tuple[Any, ...], dict[str, Any]]
Seen = tuple[Tensor, dict[str, Tensor]]  # the output of a module, and the inputs of layers in it


def sound(task: Task, changes: Sequence[Change]) -> tuple[list[Change], list[tuple[str, str]]]:
    """Changes that keep the float function on the replay sample, and the names of the others with reasons."""
    refused: dict[str, str] = {}
    while True:
        kept = [change for change in changes if change.name not in refused]
        wrong = broken(task, kept) if kept else {}
        if not wrong:
            return kept, list(refused.items())
        refused |= wrong


@torch.no_grad()
def broken(task: Task, changes: Sequence[Change]) -> dict[str, str]:
    """Folds that change the float function on the replay sample, with reasons.

    The first pass tries all changes of a module together. If the function changes, a second pass tries each suspect alone. If none
    changes it alone, all suspects are returned.
    """
    suspects = _failing(task, changes, together=True)
    guilty = _failing(task, [change for change in changes if change.name in suspects], together=False) if suspects else {}
    return guilty or suspects


def _failing(task: Task, changes: Sequence[Change], together: bool) -> dict[str, str]:
    """Folds that fail in the innermost module around them that ran. They are folded all at once there, or one by one."""
    watched = share(task.model.module)  # so that the float model itself gets no hooks
    home: dict[str, str] = {}
    found: dict[str, str] = {}
    read: dict[str, Tensor] = {}

    def compare(place: str, inside: Sequence[Change]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            own = [change for change in inside if home.setdefault(change.name, place) == place]  # inner modules come first
            original, before = task.model.module.get_submodule(place), (first_tensor(output), read)
            for names in ([own] if together else [[change] for change in own]) if own else []:
                reason = _wrong(original, place, (args, kwargs), before, inside if together else names, names)
                found.update({change.name: reason for change in names if reason is not None})
            for name in [name for change in own for name in change.scales]:
                read.pop(name, None)

        return hook

    handles = []
    for name, module in watched.named_modules():
        if inside := [change for change in changes if change.inside(name)]:
            handles.append(module.register_forward_hook(compare(name, inside), with_kwargs=True))
    handles += [_noting(watched, name, name, read) for change in changes for name in change.scales]
    sample = task.statistics.sample
    try:
        task.model.with_module(watched, None).body(sample if len(sample) else task.model.example())
    finally:
        for handle in handles:
            handle.remove()
    return found | {change.name: "no module around it runs" for change in changes if change.name not in home}


def _wrong(
    original: nn.Module, place: str, call: Call, before: Seen, changes: Sequence[Change], judged: Sequence[Change]
) -> str | None:
    """The change that `changes` make to a module's output for `call`, or to the inputs of readers of `judged`. None if no change.

    The comparison is made in float32 at least. In half precision the folded module must also stay in the range of numbers.
    """
    where = f"{place or 'the model'} on calibration inputs, with the scales that the method chose"
    after = _run(_folded(original, place, changes), place, call, judged)
    if is_half(original):
        error, dtype = _distance(before[0], after[0]), before[0].dtype
        if not error <= ROUNDINGS * torch.finfo(dtype).eps:
            shown = str(dtype).removeprefix("torch.")
            return f"in {shown} folding changes the output of {where}, by {error:.2g} (relative): numbers leave its range"
        wider, call = copy.deepcopy(original).float(), widened(call)
        before = _run(wider, place, call, judged)
        after = _run(_folded(wider, place, changes), place, call, judged)
    if not (error := _distance(before[0], after[0])) <= TOLERANCE:
        return f"folding changes the output of {where}, by {error:.2g} (relative)"
    for name, scale in (pair for one in judged for pair in one.scales.items()):
        if name not in before[1] and name not in after[1]:
            continue  # these inputs do not take the branch
        both = name in before[1] and name in after[1] and before[1][name].shape == after[1][name].shape  # the same tokens
        error = _distance(before[1][name], after[1][name] * scale) if both else float("nan")
        if not error <= TOLERANCE:
            return f"folding changes what {name} reads in {where}, by {error:.2g} (relative)"
    return None


def _folded(module: nn.Module, place: str, changes: Sequence[Change]) -> nn.Module:
    """A folded copy of a part of the model. Tensors that do not change are shared with the original."""
    result = share(module)
    for one in changes:
        one.apply(result, place)
    return result


def _run(module: nn.Module, place: str, call: Call, changes: Sequence[Change]) -> Seen:
    """The output of a part of the model, and the inputs of the changes' readers in it."""
    read: dict[str, Tensor] = {}
    names = [name for change in changes for name in change.scales]
    handles = [_noting(module, name, name.removeprefix(place).removeprefix("."), read) for name in names]
    try:
        return first_tensor(module(*call[0], **call[1])), read
    finally:
        for handle in handles:
            handle.remove()


def _noting(module: nn.Module, name: str, inner: str, read: dict[str, Tensor]) -> RemovableHandle:
    return module.get_submodule(inner).register_forward_pre_hook(lambda layer, args: read.__setitem__(name, args[0]))


def _distance(before: Tensor, after: Tensor) -> float:
    """The largest relative error of a row: a token, or an image where there are more axes. Large rows hide no small ones."""
    rows = [(x.flatten(1) if x.dim() > 3 else x).to(torch.promote_types(x.dtype, torch.float32)) for x in (before, after)]
    size = rows[0].norm(dim=-1)
    floor = FLOOR * size.square().mean().sqrt()
    return float(((rows[0] - rows[1]).norm(dim=-1) / torch.maximum(size, floor).clamp(min=1e-30)).max())
