"""Tensors on disk with their own checksum. They are computed once and read back bit for bit."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sqbench.storage.files import CorruptFile, atomic_path, canonical_json, set_aside
from sqbench.storage.locks import turn

log = logging.getLogger(__name__)

Content = tuple[dict[str, Tensor], dict[str, Any]]  # named tensors, and a JSON-able description of them


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """The sha256 of the tensors' names and bytes."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a description atomically, as one safetensors file with its checksum in the header."""
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = canonical_json(about)
    with atomic_path(path) as part:
        save_file(flat, part, metadata={"about": text, "sha256": _checksum(flat, text)})


def load(path: Path) -> Content:
    """Read what `save` wrote.

    Raises:
        CorruptFile: the checksum is missing or does not match, or the file is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CorruptFile(str(error)) from error
    text = header.get("about", "")
    if header.get("sha256") != _checksum(tensors, text):
        raise CorruptFile("checksum does not match")
    return tensors, json.loads(text)


def cached(path: Path, compute: Callable[[], Content]) -> Content:
    """The content of `path` if it is intact, else computed and stored. One process computes while others wait for the file."""
    if (found := whole(path)) is not None:
        return found
    with turn(path.with_name(f"{path.name}.claim"), path.parent.name):
        if (found := whole(path)) is not None:  # from another process, while we waited
            return found
        content = compute()
        save(path, *content)
    log.debug("%s: computed", path)
    return content


def whole(path: Path) -> Content | None:
    """The content of a file. None if there is no file, or if it was damaged; then it is moved aside."""
    if not path.is_file():
        return None
    try:
        found = load(path)
    except CorruptFile as reason:
        set_aside(path, reason)
        return None
    log.debug("%s: read", path)
    return found


def _checksum(tensors: dict[str, Tensor], about: str) -> str:
    """sha256 (hex) over the description and every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
