"""The quantized layer that replaces a layer, and the quantizer of its input."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.formats.codec import EncodedTensor, decode, fake_quantize, from_blocks, of_tensor, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, QParams, block_range, qparams
from sqbench.quant.access import in_layout, weight_of, with_parameter


def version_of(x: Tensor) -> int:
    """How often a tensor was written to. -1 for inference tensors, which keep no count. No layer writes to its input."""
    return -1 if x.is_inference() else x._version


class Shared:
    """Runs work once on a tensor that several layers read. The first of `readers` computes, and the others get its result."""

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self._known: tuple[Tensor, int, Any] | None = None  # input, its version, result
        self._waiting = 0

    def __call__(self, work: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Return work(x), or the result that another reader of x got."""
        if self.readers < 2:
            return work(x)
        version = version_of(x)
        if self._known is not None and self._known[0] is x and self._known[1] == version:
            result = self._known[2]
            self._waiting -= 1
        else:
            result = work(x)
            self._known, self._waiting = (x, version, result), self.readers - 1
        if self._waiting <= 0:
            self._known = None  # no other reader needs it: free the memory
        return result


class ActivationQuantizer(nn.Module):
    """Fake-quantizes an activation with fixed ranges if they are given, else with the ranges of the tensor.

    Layers that read the same tensor share one quantizer.
    """

    def __init__(self, fmt: Format, limits: Limits | QParams | None = None, readers: int = 1, axis: int = -1) -> None:
        """`axis` holds the channels. The range of a token or a group runs along it. A static format has limits or parameters."""
        super().__init__()
        assert fmt.dynamic == (limits is None), "static formats need limits, dynamic formats have none"
        self.fmt = fmt
        self.static = limits if limits is None or isinstance(limits, QParams) else qparams(*limits, fmt)
        self.readers = readers
        self.axis = axis
        self.shared = Shared(readers)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.quantized, x)

    def quantized(self, x: Tensor) -> Tensor:
        ordered = x if self.fmt.granularity == "tensor" else x.movedim(self.axis, -1)
        fmt = of_tensor(self.fmt, x)  # the format of a model's input knows calibration's largest magnitude
        blocks = to_blocks(ordered, fmt)
        params = self.static if self.static is not None else qparams(*block_range(blocks, fmt), fmt)
        result = from_blocks(fake_quantize(blocks, params, fmt), fmt, ordered.shape).to(x.dtype)
        return result if ordered is x else result.movedim(-1, self.axis)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # .to(device) moves the parameters along
        if self.static is not None:
            self.static = self.static.map(fn)
        return super()._apply(fn, recurse)


class Stored(nn.Module, ABC):
    """A layer that knows how many bytes its weight takes in its format. Its weight may be held differently in memory."""

    weight: Any

    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes of the weight as stored: codes, scales, zero-points."""


class Encoded(Stored):
    """A layer that holds its weight encoded.

    Attributes:
        format: the format of the weight. None for a float weight.
    """

    format: Format | None
    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    columns: Tensor | None

    def hold(self, encoded: EncodedTensor | None) -> None:
        """Keep a weight as buffers. They move with the layer, and copies of it share them."""
        self.format = None if encoded is None else encoded.format
        for name in ("codes", "scale", "zero_point", "columns"):
            self.register_buffer(name, None if encoded is None else getattr(encoded, name), persistent=False)

    @property
    def encoded(self) -> EncodedTensor:
        """The weight [out, in] as it is stored. Only for a weight that is quantized."""
        assert self.format is not None
        return EncodedTensor(self.codes, self.scale, self.zero_point, self.format, self.columns)


class StandIn(nn.Module):
    """A module that replaces a layer and computes through it. Callers can still read dtype and device from its weight."""

    layer: nn.Module

    @property
    def weight(self) -> Any:
        """The weight of the layer."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The bias of the layer."""
        return self.layer.bias


class QuantLayer(StandIn, Encoded):
    """A layer whose weight is encoded, and whose input goes through a quantizer. It simulates: it computes in float.

    The dequantized weight is made at the first forward pass. A layer that is lowered before never holds it.

    Attributes:
        layer: the float layer. A weight that is encoded has no elements here before the first forward pass.
        activation: the quantizer of the input. None leaves the input as it is.
    """

    def __init__(self, layer: nn.Module, encoded: EncodedTensor | None, activation: nn.Module | None) -> None:
        """`encoded` is the weight [out, in]. None leaves it in float."""
        super().__init__()
        self.activation = activation
        floats = layer.weight
        assert isinstance(floats, Tensor)
        self.size = floats.shape
        self.layer = layer if encoded is None else with_parameter(layer, floats.detach().new_empty(0))
        self.hold(encoded)

    def simulated(self) -> nn.Module:
        """The float layer with the dequantized weight."""
        if self.format is None or self.weight.numel():
            return self.layer
        weight = decode(self.encoded).to(self.weight.dtype)
        return with_parameter(self.layer, in_layout(self.layer, weight, self.size))

    def forward(self, x: Tensor) -> Tensor:
        self.layer = self.simulated()
        return self.layer(x if self.activation is None else self.activation(x))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight matrix."""
        rows, columns = weight_of(self.layer).shape if self.format is None else self.encoded.shape
        return rows, columns

    def stored_bytes(self) -> int:
        """Bytes of the weight as stored in its format (codes, scales, zero-points), not as simulated."""
        if self.format is not None:
            return self.format.stored_bytes(*self.shape)
        weight = weight_of(self.layer)
        return weight.numel() * weight.element_size()

    def extra_repr(self) -> str:
        return f"weight {self.format or 'float'}"


def stored_bytes(model: nn.Module) -> int:
    """Weight bytes of a whole model: quantized layers as stored in their format, the rest as it is. Tied tensors count once."""
    total, seen = 0, set()
    for module in model.modules():
        if isinstance(module, Stored):
            total += module.stored_bytes()
            seen.add(module.weight.data_ptr())
    for tensor in model.parameters():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.numel() * tensor.element_size()
    return total


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(sum x^2 / sum (x - x^)^2). Capped at 200 for an exact copy."""
    signal = reference.double().square().sum()
    noise = (reference.double() - approximation.double()).square().sum()
    if signal == 0:
        return 200.0 if noise == 0 else -200.0
    return float(torch.clamp(10 * torch.log10(signal / noise.clamp(min=1e-300)), max=200.0))
