"""The whole matrix of a layer's second moments: what GPTQ's Hessian is made of, in memory or on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sqbench.statistics.base import Batch, Collector


@dataclass
class Gram(Collector):
    """X^T X over the rows x that a layer multiplies with its weight. GPTQ's H is 2 / count times it (Frantar et al., 2022).

    Attributes:
        matrix: [groups, K, K] float32. A linear layer has one group, and K is its channels. A convolution has one matrix for each
            of its groups, and K = channels / groups * height * width, in the order of the columns of `weight_of`.
        count: how many rows were added: tokens, or places of a convolution's window.
    """

    name: ClassVar[str] = "gram"

    matrix: Tensor
    count: int

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "Gram":
        return cls(torch.zeros(0, device=device), 0)  # the first batch shows the shape

    def update(self, batch: Batch) -> None:
        for part in batch.columns():
            if not self.count:
                groups, _, width = part.shape
                self.matrix = part.new_zeros(groups, width, width)
            self.matrix.baddbmm_(part.transpose(1, 2), part)
            self.count += part.shape[1]

    def scaled(self, scale: Tensor) -> "Gram":
        each = scale.reshape(len(self.matrix), -1)
        each = each.repeat_interleave(self.matrix.shape[1] // each.shape[1], 1)  # a channel has all columns of its window
        return Gram(self.matrix / each.unsqueeze(1) / each.unsqueeze(2), self.count)

    def joined(self, other: "Gram | StoredGram") -> "Gram":
        second = other.read()
        return Gram(self.matrix + second.matrix, self.count + second.count)

    def read(self) -> "Gram":
        """This matrix."""
        return self


class StoredGram(Collector):
    """A matrix that stays on disk. Each `read` reads it, so that only the matrix in use is in memory."""

    name: ClassVar[str] = "gram"

    def __init__(self, read: Callable[[], Gram]) -> None:
        self.read = read

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> "StoredGram":
        raise TypeError("a stored matrix is made from a collected one")

    def update(self, batch: Batch) -> None:
        raise TypeError("a stored matrix takes no further batch")

    def scaled(self, scale: Tensor) -> "StoredGram":
        return StoredGram(lambda: self.read().scaled(scale))

    def joined(self, other: "StoredGram | Gram") -> "StoredGram":
        return StoredGram(lambda: self.read().joined(other))

    def tensors(self) -> dict[str, Tensor]:
        return self.read().tensors()
