"""The checkpoint of a training run after each epoch. The run can go on from it, bit for bit."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.storage import tensorfile
from sqbench.storage.files import CorruptFile, set_aside

log = logging.getLogger(__name__)

VERSION = 1  # of the checkpoint's content; part of the key


@dataclass
class Progress:
    """How far a training run is.

    Attributes:
        epoch, step: how many are completed.
        curve: one entry per epoch. Epoch 0 is the start.
        best: the network's state after the best epoch.
    """

    epoch: int = 0
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


def save(path: Path, key: str, progress: Progress, state: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write a run's network, best network, optimizer state and progress as one file, which replaces the last one."""
    tensors = {f"now/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in progress.best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    about = {"key": key, "epoch": progress.epoch, "step": progress.step, "curve": progress.curve, "best": progress.best_epoch}
    tensorfile.save(path, tensors, about)


def load(path: Path, key: str, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Tensor]] | None:
    """The progress and network of the run with this key. None if the file holds no such run.

    The optimizer's state is restored.
    """
    if not path.is_file():
        return None
    try:
        tensors, about = tensorfile.load(path)
    except CorruptFile as reason:
        set_aside(path, reason)
        return None
    if about.get("key") != key:
        log.info("%s is of another training run: starting anew", path)
        return None
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, rest = name.partition("/")
        state.setdefault(int(index), {})[rest] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    log.info("going on after epoch %d of %s", about["epoch"], path)
    return Progress(about["epoch"], about["step"], about["curve"], about["best"], parts["best"]), parts["now"]
