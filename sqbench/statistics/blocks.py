"""The diagonal blocks of a tensor's second moments. They are small, and exact for errors inside a block."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sqbench.statistics.base import Batch, Collector

GRAM_BLOCK = 128


def gram_block(channels: int) -> int:
    """Width of the diagonal Gram blocks: the largest power of two up to 128 that divides the channels."""
    block = GRAM_BLOCK
    while channels % block:
        block //= 2
    return block


@dataclass
class Blocks(Collector):
    """Diagonal blocks of X^T X.

    Attributes:
        blocks: [C / b, b, b]. They give the exact output error of any weight error inside a block.
    """

    name: ClassVar[str] = "blocks"

    blocks: Tensor

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Blocks":
        block = gram_block(channels)
        return cls(torch.zeros(channels // block, block, block, device=device))

    def update(self, batch: Batch) -> None:
        groups = batch.rows.unflatten(1, (self.blocks.shape[0], -1)).transpose(0, 1)
        self.blocks.baddbmm_(groups.transpose(1, 2), groups)

    def scaled(self, scale: Tensor) -> "Blocks":
        by_block = scale.view(self.blocks.shape[0], -1)
        return Blocks(self.blocks / by_block.unsqueeze(1) / by_block.unsqueeze(2))

    def joined(self, other: "Blocks") -> "Blocks":
        return Blocks(self.blocks + other.blocks)
