"""The bytes that a network really holds in memory, whatever its format needs in theory."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def resident_bytes(module: nn.Module) -> int:
    """The bytes of storage of every tensor that is reachable from a module. Shared storage counts once.

    Parameters, buffers, and tensors in plain attributes and containers count, at any depth. Packed tensors of kernels (oneDNN) hide
    their storage, so the bytes of their elements count. A wrapper tensor counts as the tensors that it wraps.
    """
    storages: dict[int, int] = {}
    for tensor in _tensors(module):
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr() or id(tensor)] = storage.nbytes()
        else:
            storages[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(storages.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    waiting: list[Any] = [module]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if hasattr(value, "__tensor_flatten__"):
                waiting += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
            elif value.device.type != "meta":
                yield value
        elif isinstance(value, nn.Module):
            waiting.append(vars(value))
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
