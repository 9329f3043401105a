"""Weights from files of plain tensors: reading them, and putting them into a network that must fit."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sqbench.errors import UserError, counted


def read_tensors(file: Path, place: str) -> dict[str, Tensor]:
    """Name -> tensor from a safetensors or torch file. A training checkpoint gives its EMA weights if it has them.

    Args:
        place: the file's name in errors: a key and its value.

    Raises:
        UserError: the file is neither, or would run code while it is loaded.
    """
    from timm.models import load_state_dict

    try:
        tensors: dict[str, Tensor] = load_state_dict(str(file), weights_only=True)
    except Exception as error:
        raise UserError(
            f"{place}: {file.name} cannot be read as plain tensors ({type(error).__name__}); use .safetensors, or a"
            " .pth file of a state_dict, saved by torch.save(module.state_dict(), ...)"
        ) from error
    return tensors


def put(tensors: dict[str, Tensor], into: nn.Module, place: str) -> None:
    """Replace all weights of a network. A prefix that all names share and the network's do not have is left out.

    Raises:
        UserError: the weights are of another network.
    """
    expected = into.state_dict()
    found = _without_prefix(tensors, expected)
    if wrong := differences(expected, found):
        raise UserError(f"{place}: no weights of this {type(into).__name__}: {wrong}")
    into.load_state_dict(found)


def _without_prefix(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of a network, if one prefix makes all the difference."""
    first = next(iter(expected), "")
    prefixes = {name.removesuffix(first) for name in tensors if first and name.endswith(f".{first}")}
    for prefix in sorted(prefixes):
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def differences(expected: dict[str, Tensor], found: dict[str, Any]) -> str:
    """A list of names that only one of the two has, and of shapes that differ: counts, and the first three of each."""
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if isinstance(found.get(name), Tensor) and found[name].shape != expected[name].shape
    ]
    parts = {
        "tensors missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(counted(names, what) for what, names in parts.items() if names)
