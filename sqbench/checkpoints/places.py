"""The layer of a model that each stored layer is. transformers gives experts, and layers of older releases, other names."""

from collections.abc import Mapping

from torch import Tensor, nn

from sqbench.models.experts import Experts


def places(module: nn.Module, decoded: Mapping[str, Tensor]) -> dict[str, str]:
    """Stored layer -> layer of the model.

    A layer keeps its name if the model has one of this name. An expert's layer is found by its numbers, as in
    `model.layers.3.block_sparse_moe.experts.5.w1`, and by its weight, which transformers has put there.

    Args:
        module: the model with these weights. Its experts are split.
        decoded: stored layer -> weight [out, in].
    """
    inside: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, part in module.named_modules():
        if isinstance(part, Experts):
            for path, layer in part.named_modules(prefix=name):
                if isinstance(layer, nn.Linear):
                    inside.setdefault(_numbers(path), {})[path] = layer.weight
    known = {name for name, _ in module.named_modules()}
    found = {}
    for name, weight in decoded.items():
        found[name] = name
        if name not in known:
            there = inside.get(_numbers(name), {})
            same = [path for path, held in there.items() if held.shape == weight.shape and held.equal(weight.to(held))]
            if same:
                found[name] = same[0]
                del there[same[0]]
    return found


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(word for word in name.split(".") if word.isdecimal())
