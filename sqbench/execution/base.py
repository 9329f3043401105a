"""The base of integer layers. Each is made from the simulated layers that it must agree with."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from sqbench.quant.layers import QuantLayer, Shared, Stored, is_linear


class IntegerLayer(Stored):
    """Takes the place of `QuantLayer`s and computes the same function from integer codes. It holds no float weight.

    Attributes:
        kernel: the kernel's name in records.
        merges: whether one product may compute several layers that read the same tensor, with their outputs side by side.
        convolves: whether it takes convolutions rather than linear layers.
        device: the type of device that it runs on.
        weight: a parameter without elements. Models read a layer's dtype and device from it.
        bias: [out] in the dtype that is returned, or None.
    """

    kernel: ClassVar[str]
    merges: ClassVar[bool] = False
    convolves: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"

    def __init__(self, layers: list[QuantLayer]) -> None:
        """Make one layer of `layers`. There are several only if the class merges."""
        super().__init__()
        assert len(layers) == 1 or self.merges
        floats = layers[0].weight
        self.weight = nn.Parameter(torch.empty(0, dtype=floats.dtype, device=floats.device), requires_grad=False)
        self.bias = _side_by_side([layer.bias for layer in layers], [layer.shape[0] for layer in layers])
        self.out_features = sum(layer.shape[0] for layer in layers)
        self.shared = Shared(len(layers))
        self._stored_bytes = sum(layer.stored_bytes() for layer in layers)

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        """Whether this kernel is for the kind of a layer and for its device."""
        return is_linear(layer.layer) != cls.convolves and layer.weight.device.type == cls.device

    @classmethod
    @abstractmethod
    def refusal(cls, layer: QuantLayer) -> str | None:
        """The reason why it cannot execute a layer that it takes, as a sentence for the record. None if it can."""

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """The outputs of the simulated layers, side by side, up to float accumulation error."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.run, x)

    def stored_bytes(self) -> int:
        """Bytes of the weight in its format, as the simulated layer counts them."""
        return self._stored_bytes

    def extra_repr(self) -> str:
        return self.kernel


class Part(nn.Module):
    """One of several layers that an integer layer computes together: a slice of its outputs."""

    def __init__(self, whole: IntegerLayer, start: int, stop: int) -> None:
        super().__init__()
        self.whole = whole
        self.start, self.stop = start, stop

    @property
    def weight(self) -> Tensor:
        """The weight of the whole. It has a dtype and a device, but no elements."""
        return self.whole.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [stop - start], or None."""
        return None if self.whole.bias is None else self.whole.bias[self.start : self.stop]

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)[..., self.start : self.stop]


def _side_by_side(biases: list[Tensor | None], sizes: list[int]) -> nn.Parameter | None:
    """The biases of layers that become one. A layer without a bias gets zeros."""
    known = next((bias for bias in biases if bias is not None), None)
    if known is None:
        return None
    parts = [known.new_zeros(size) if bias is None else bias.detach() for bias, size in zip(biases, sizes, strict=True)]
    return nn.Parameter(torch.cat(parts), requires_grad=False)
