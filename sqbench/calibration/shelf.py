"""Gram matrices on disk, one file for each layer. They are written as they are finished, and read one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sqbench.errors import UserError
from sqbench.statistics import Gram, StoredGram
from sqbench.statistics.windows import gram_shape
from sqbench.storage import tensorfile
from sqbench.storage.files import CorruptFile, set_aside

GRAM_BYTES = 2 << 30  # of Gram matrices in memory at once. A block of a 7B model has 0.7 GB of them, the whole model 22 GB.


@dataclass(frozen=True)
class Shelf:
    """A folder of matrices that belong to one model and its calibration data.

    Attributes:
        about: goes into every file.
        device: of the matrices that are read.
    """

    folder: Path
    about: dict[str, Any]
    device: torch.device

    def path(self, site: str) -> Path:
        return self.folder / f"{site}.safetensors"

    def holds(self, site: str) -> bool:
        return self.path(site).is_file()

    def put(self, site: str, gram: Gram) -> None:
        tensorfile.save(self.path(site), gram.tensors(), self.about | {"collector": "gram", "site": site})

    def stored(self, site: str) -> StoredGram:
        return StoredGram(partial(self._read, site))

    def _read(self, site: str) -> Gram:
        """Raise UserError if the file has gone or is damaged. The next calibration collects that matrix again."""
        path = self.path(site)
        try:
            tensors, _ = tensorfile.load(path)
        except CorruptFile as reason:
            set_aside(path, reason)
            raise UserError(f"{path} is damaged; calibrate again") from reason
        except OSError as reason:
            raise UserError(f"{path} cannot be read ({reason}); calibrate again") from reason
        return Gram.from_tensors({name: value.to(self.device) if value.dim() else value for name, value in tensors.items()})


def gram_bytes(module: nn.Module, site: str) -> int:
    """Bytes of a layer's Gram matrix."""
    groups, width = gram_shape(module.get_submodule(site))
    return 4 * groups * width * width


def portions(module: nn.Module, sites: Sequence[str]) -> list[list[str]]:
    """The sites in parts, in order. The matrices of one part fit into GRAM_BYTES, or it is a single one."""
    parts: list[list[str]] = []
    used = 0
    for site in sites:
        size = gram_bytes(module, site)
        if not parts or used + size > GRAM_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(site)
        used += size
    return parts


def check_room(module: nn.Module, sites: Sequence[str]) -> None:
    """Raise UserError if the matrices of all sites do not fit into memory together."""
    if (size := sum(gram_bytes(module, site) for site in sites)) > GRAM_BYTES:
        raise UserError(
            f"needs=gram: the Gram matrices of {len(sites)} layers take {size / 1e9:.1f} GB, and memory holds at most"
            f" {GRAM_BYTES / 1e9:.1f} GB of them; use calibrate(..., folder=...), which keeps them on disk"
        )
