"""Objects that the points of one process share: weights, examples, statistics, float results."""

import gc
from collections.abc import Callable, Hashable
from typing import Any

import torch

_slots: dict[str, tuple[Hashable, Any]] = {}


def shared(slot: str, key: Hashable, make: Callable[[], Any]) -> Any:
    """The value of a slot, which the points of one process share. It is made again when its key changes."""
    if slot not in _slots or _slots[slot][0] != key:
        if slot in _slots:  # first free the old value and those made from it, which hold it too
            for later in list(_slots)[list(_slots).index(slot) :]:
                del _slots[later]
        _slots[slot] = (key, make())
    return _slots[slot][1]


def forget() -> None:
    """Free the objects that the points of this process share, and the GPU memory that torch caches."""
    _slots.clear()
    gc.collect()  # modules with hooks form reference cycles
    torch.cuda.empty_cache()
