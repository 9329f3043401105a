"""Inputs with a range for each token, found at run time by the operations of a graph."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sqbench.quant.layers import ActivationQuantizer, Shared


class Tokens(nn.Module, ABC):
    """Codes and scales of an input. Layers that read one tensor share them."""

    def __init__(self, simulated: ActivationQuantizer) -> None:
        super().__init__()
        self.fmt = simulated.fmt
        self.shared = Shared(simulated.readers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as `rounded` gives them, and float32 scales [..., 1]."""
        return self.shared(self._codes, x)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        largest = x.abs().amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest / self.fmt.levels, torch.ones_like(largest))
        return self.rounded(x / scale), scale

    @abstractmethod
    def rounded(self, steps: Tensor) -> Tensor:
        """The codes of quotients x / scale, as the runtime's products read them."""
