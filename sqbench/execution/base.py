"""The base of integer layers. Each is made from the simulated layers that it must agree with."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from sqbench.formats.accepts import Accepts
from sqbench.quant.access import is_linear
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, Shared, Stored


class IntegerLayer(Stored):
    """Takes the place of `QuantLayer`s and computes the same function from integer codes. It holds no float weight.

    A class declares what it accepts. All else is refused.

    Attributes:
        kernel: the kernel's name in records.
        weights: the formats of weights that it accepts.
        inputs: the formats of inputs that it accepts. None: inputs must be float.
        simulates_inputs: whether it takes float inputs, and simulates the rounding of all others.
        dtypes: the dtypes of models that it accepts.
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
    weights: ClassVar[Accepts]
    inputs: ClassVar[Accepts | None] = None
    simulates_inputs: ClassVar[bool] = False
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)

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
    def refusal(cls, layer: QuantLayer) -> str | None:
        """The reason why it cannot execute a layer that it takes, as a sentence for the record. None if it can."""
        if layer.format is None:
            return f"{cls.kernel} takes quantized weights, and these are float"
        if layer.weight.dtype not in cls.dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in cls.dtypes)
            return f"{cls.kernel} takes models in {names}, not {str(layer.weight.dtype).removeprefix('torch.')}"
        return cls.weights.refusal(layer.format) or cls._refused_input(layer.activation) or cls.hindrance(layer)

    @classmethod
    def _refused_input(cls, activation: nn.Module | None) -> str | None:
        if activation is None:
            return (
                None if cls.inputs is None or cls.simulates_inputs else f"{cls.kernel} takes quantized inputs, and these are float"
            )
        if type(activation) is not ActivationQuantizer:
            return f"{cls.kernel} does not know how {type(activation).__name__} rounds inputs"
        if cls.simulates_inputs:
            return None
        return f"{cls.kernel} takes float inputs" if cls.inputs is None else cls.inputs.refusal(activation.fmt)

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        """The reason why this machine, or a layer's size, stands in the way of formats that it accepts. None if nothing does."""
        return None

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
