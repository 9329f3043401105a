"""The names that experts have in a checkpoint."""

from typing import Any

import torch

from sqbench.errors import UserError
from sqbench.models.experts import Experts


def stored_names(module: Any, target: str) -> dict[str, str]:
    """Layer of an expert -> its name in a checkpoint of a transformers model.

    transformers itself knows how it would save stacked experts. It is given numbers in the place of matrices.

    Args:
        target: the word for `format=`.

    Raises:
        UserError: experts are stacked in such a checkpoint too, so their layers have no names.
    """
    from transformers.core_model_loading import revert_weight_conversion

    places: list[str] = []
    numbers: dict[str, torch.Tensor] = {}
    for name, part in module.named_modules():
        if not isinstance(part, Experts):
            continue
        each = []
        for number, layers in enumerate(part.layers()):
            each.append({leaf: torch.tensor([[float(len(places) + step)]]) for step, leaf in enumerate(layers)})
            places += [f"{name}.{number}.{leaf}" for leaf in layers]
        numbers |= {f"{name}.{matrix}": value for matrix, value in part.layout.stacked(each).items()}
    saved = revert_weight_conversion(module, numbers) if numbers else {}
    names = {places[int(value)]: name.removesuffix(".weight") for name, value in saved.items() if value.numel() == 1}
    if lost := [place for place in places if place not in names]:
        what = f"{lost[0]} has no tensor of its own in a checkpoint of {type(module).__name__}"
        raise UserError(f"format={target}: {what}; use format=safetensors")
    return names
