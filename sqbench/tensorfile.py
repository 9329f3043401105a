"""Tensors on disk with a checksum beside them, computed once and read back bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sqbench.storage import CorruptFile, atomic_path, canonical_json, file_digest, set_aside, write_text

Content = tuple[dict[str, Tensor], dict[str, Any]]  # named tensors, and a JSON-able description of them


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a description as one safetensors file, and its sha256 beside it."""
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_path(path) as part:
        save_file(flat, part, metadata={"about": canonical_json(about)})
        checksum = file_digest(part)
    write_text(_seal(path), checksum)


def load(path: Path) -> Content:
    """Read what `save` wrote.

    Raises:
        CorruptFile: the checksum is missing or does not match, or the file is not safetensors.
    """
    seal = _seal(path)
    if not seal.is_file() or seal.read_text(encoding="utf-8", errors="replace").strip() != file_digest(path):
        raise CorruptFile("checksum does not match")
    try:
        with safe_open(path, framework="pt") as handle:
            about = json.loads((handle.metadata() or {}).get("about", "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, about  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CorruptFile(str(error)) from error


def cached(path: Path, compute: Callable[[], Content]) -> tuple[Content, bool]:
    """The content of `path` if it is there and whole, else computed and stored; and whether it was there."""
    if path.is_file():
        try:
            return load(path), True
        except CorruptFile as reason:
            set_aside(path, reason)
    tensors, about = compute()
    save(path, tensors, about)
    return (tensors, about), False


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
