"""Linear and convolution layers: their weights whatever class they have, and the quantized layer that takes their place."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.quant.affine import QParams, block_range, fake_quantize, qparams, quantize, to_blocks
from sqbench.quant.formats import Format


@dataclass(frozen=True)
class Kind:
    """How a class of layers stores its weight and reads its input.

    Attributes:
        transposed: the weight is [in, out].
        axis: of the input, which holds its channels.
        folds: a scale per input channel can be multiplied into its weight's columns.
        pads: zeros go around the input so that the output has ceil(size / stride) pixels, as in TensorFlow.
    """

    transposed: bool = False
    axis: int = -1
    folds: bool = True
    pads: bool = False


# By the forward function that a class has or inherits. Conv1D is GPT-2's; neither transformers nor timm is loaded here.
KINDS = {
    ("torch.nn.modules.linear", "Linear.forward"): Kind(),
    ("transformers.pytorch_utils", "Conv1D.forward"): Kind(transposed=True),
    ("torch.nn.modules.conv", "Conv2d.forward"): Kind(axis=1, folds=False),
    ("timm.layers.conv2d_same", "Conv2dSame.forward"): Kind(axis=1, folds=False, pads=True),
}


@cache
def _kind_of_class(cls: type[nn.Module]) -> Kind | None:
    forward = cls.forward
    inner = getattr(cls, "_conv_forward", nn.Conv2d._conv_forward)  # what a convolution's forward calls
    known = (getattr(forward, "__module__", ""), getattr(forward, "__qualname__", ""))
    return KINDS.get(known) if inner is nn.Conv2d._conv_forward else None


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer whose weight and input can be quantized; None for every other module.

    A layer is known by the function that it runs, and its weight must be a parameter of its own: a class of another forward pass, a
    parametrization or a hook may compute with another weight than the one that can be read.
    """
    weight = module._parameters.get("weight")
    own = isinstance(weight, Tensor) and weight.is_floating_point() and "forward" not in module.__dict__
    return _kind_of_class(type(module)) if own else None  # type: ignore[arg-type]  # of a class, not of a module


def is_linear(module: nn.Module) -> bool:
    """Whether a module is y = x W^T + b with a weight we can read and replace."""
    kind = kind_of(module)
    return kind is not None and kind.folds


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a layer as [out, in], of a convolution [out, in / groups * height * width]; a view, never a copy."""
    weight, kind = module.weight, kind_of(module)
    assert isinstance(weight, Tensor)
    return weight.detach().t() if kind is not None and kind.transposed else weight.detach().flatten(1)


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer a new weight, shaped as `weight_of` has it; the old tensor is left as it was, for whoever shares it."""
    old, kind = module.weight, kind_of(module)
    assert isinstance(old, Tensor)
    stored = weight.t().contiguous() if kind is not None and kind.transposed else weight.reshape(old.shape)
    module.weight = nn.Parameter(stored, requires_grad=False)


def channels_of(module: nn.Module) -> int:
    """How many channels a layer's input has."""
    named = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
    return int(weight_of(module).shape[1]) if named is None else int(named)


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Input channels that one output of a layer reads (of a convolution those of its group), and all input channels."""
    channels = channels_of(module)
    return (channels // module.groups if isinstance(module, nn.Conv2d) else channels), channels


def channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as [..., channels]; a view."""
    kind = kind_of(module)
    return x if kind is None else x.movedim(kind.axis, -1)


def version_of(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count, and no layer writes to its input."""
    return -1 if x.is_inference() else x._version


class Shared:
    """Work on a tensor that several layers read: done for the first of `readers`, its result handed to the others."""

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self._known: tuple[Tensor, int, Any] | None = None  # input, its version, result
        self._waiting = 0

    def __call__(self, work: Callable[[Tensor], Any], x: Tensor) -> Any:
        """work(x), or what it was."""
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
            self._known = None  # nobody else reads it: let it go
        return result


class ActivationQuantizer(nn.Module):
    """Fake-quantizes an activation: with fixed ranges if they are given, else with those of the tensor.

    Layers that read the same tensor share one.
    """

    def __init__(self, fmt: Format, limits: tuple[Tensor, Tensor] | None = None, readers: int = 1, axis: int = -1) -> None:
        """`axis` holds the channels: it is what a token's or a group's range runs along."""
        super().__init__()
        assert fmt.dynamic == (limits is None), "static formats need limits, dynamic formats have none"
        self.fmt = fmt
        self.static = None if limits is None else qparams(*limits, fmt)
        self.readers = readers
        self.axis = axis
        self.shared = Shared(readers)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.quantized, x)

    def quantized(self, x: Tensor) -> Tensor:
        ordered = x if self.fmt.granularity == "tensor" else x.movedim(self.axis, -1)
        blocks = to_blocks(ordered, self.fmt)
        params = self.static if self.static is not None else qparams(*block_range(blocks), self.fmt)
        result = fake_quantize(blocks, params, self.fmt).view(ordered.shape).to(x.dtype)
        return result if ordered is x else result.movedim(-1, self.axis)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # .to(device) moves the parameters along
        if self.static is not None:
            self.static = QParams(*(fn(part) for part in self.static))
        return super()._apply(fn, recurse)


class Stored(nn.Module, ABC):
    """A layer that knows how many bytes its weight takes in its format, however it is held in memory."""

    weight: Any

    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes of the weight as stored: codes, scales, zero-points."""


class StandIn(nn.Module):
    """What takes the place of a layer and computes through it; its weight can still be asked for dtype and device."""

    layer: nn.Module

    @property
    def weight(self) -> Any:
        """That of the layer."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """That of the layer."""
        return self.layer.bias


class QuantLayer(StandIn, Stored):
    """A layer whose weight (and input) went through the quantizer. Simulated: holds the dequantized weight."""

    def __init__(
        self, layer: nn.Module, fmt: Format | None, limits: tuple[Tensor, Tensor] | None, activation: nn.Module | None
    ) -> None:
        """`limits` are clipping ranges over the weight's blocks; None takes each block's own minimum and maximum."""
        super().__init__()
        self.format = fmt
        self.activation = activation
        self.layer = layer
        self.params: QParams | None = None
        held = None
        if fmt is not None:
            weight = weight_of(layer)
            blocks = to_blocks(weight, fmt)
            self.params = qparams(*(block_range(blocks) if limits is None else limits), fmt)
            self.layer = with_weight(layer, fake_quantize(blocks, self.params, fmt).view(weight.shape).to(weight.dtype))
            if weight.element_size() < 4:  # half precision rounds a dequantized weight: its code cannot be read off it
                held = quantize(blocks, self.params, fmt).view(weight.shape)
        self.register_buffer("held", held, persistent=False)
        self.held: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if self.activation is None else self.activation(x))

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return len(weight_of(self.layer))

    def stored_bytes(self) -> int:
        """Bytes of the weight as stored in its format (codes, scales, zero-points), not as simulated."""
        weight = weight_of(self.layer)
        return weight.numel() * weight.element_size() if self.format is None else self.format.stored_bytes(*weight.shape)

    def codes(self) -> Tensor:
        """The weight's codes [out, in], int8; in float32 they are read off the dequantized weight, which is exact."""
        assert self.format is not None
        assert self.params is not None
        if self.held is not None:
            return self.held
        weight = weight_of(self.layer)
        return quantize(to_blocks(weight, self.format), self.params, self.format).view(weight.shape)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # .to(device) moves the parameters along
        if self.params is not None:
            self.params = QParams(*(fn(part) for part in self.params))
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"weight {self.format or 'float'}"


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The same layer with another weight (as `weight_of` has it); everything else is shared."""
    other = copy.copy(layer)
    other._parameters = dict(layer._parameters)  # copy.copy shares the dictionary itself
    set_weight(other, weight)
    return other


def stored_bytes(model: nn.Module) -> int:
    """Weight bytes of a whole model as stored: quantized layers in their format, everything else as it is, tied tensors once."""
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
    """Signal to quantization noise ratio in dB: 10 log10(sum x^2 / sum (x - x^)^2); capped at 200 for an exact copy."""
    signal = reference.double().square().sum()
    noise = (reference.double() - approximation.double()).square().sum()
    if signal == 0:
        return 200.0 if noise == 0 else -200.0
    return float(torch.clamp(10 * torch.log10(signal / noise.clamp(min=1e-300)), max=200.0))
