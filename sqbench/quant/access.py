"""Linear and convolution layers of any class: how they store their weight and read their input."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """How a class of layers stores its weight and reads its input.

    Attributes:
        transposed: the weight is [in, out].
        axis: the axis of the input that holds its channels.
        folds: a scale per input channel can be multiplied into the weight's columns.
        pads: the layer pads its input with zeros to an output of ceil(size / stride) pixels, as TensorFlow does.
    """

    transposed: bool = False
    axis: int = -1
    folds: bool = True
    pads: bool = False


# Keys name the forward function that a class has or inherits, so transformers and timm need not be loaded. Conv1D is GPT-2's.
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
    """The kind of a layer whose weight and input can be quantized. None for every other module.

    A layer is recognized by its forward function, and its weight must be a parameter of its own. A class with another forward pass,
    a parametrization or a hook may compute with a different weight.
    """
    weight = module._parameters.get("weight")
    own = isinstance(weight, Tensor) and weight.is_floating_point() and "forward" not in module.__dict__
    return _kind_of_class(type(module)) if own else None  # type: ignore[arg-type]  # of a class, not of a module


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes y = x W^T + b with a weight that can be read and replaced."""
    kind = kind_of(module)
    return kind is not None and kind.folds


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a layer as [out, in], or of a convolution as [out, in / groups * height * width]. A view, never a copy."""
    weight, kind = module.weight, kind_of(module)
    assert isinstance(weight, Tensor)
    return weight.detach().t() if kind is not None and kind.transposed else weight.detach().flatten(1)


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer a new weight, shaped as `weight_of` returns it. The old tensor does not change: other modules may share it."""
    assert isinstance(module.weight, Tensor)
    module.weight = nn.Parameter(in_layout(module, weight, module.weight.shape), requires_grad=False)


def in_layout(module: nn.Module, weight: Tensor, shape: torch.Size) -> Tensor:
    """A matrix [out, in] in the layout and shape of a layer's parameter."""
    kind = kind_of(module)
    return weight.t().contiguous() if kind is not None and kind.transposed else weight.reshape(shape)


def channels_of(module: nn.Module) -> int:
    """The number of channels of a layer's input."""
    named = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
    return int(weight_of(module).shape[1]) if named is None else int(named)


class Widths(NamedTuple):
    """Sizes of a layer: input channels that one output reads, all input channels, and outputs. A convolution in groups counts the
    inputs and the outputs of one of its groups.
    """

    reads: int
    channels: int
    outputs: int


def widths_of(module: nn.Module) -> Widths:
    """The sizes of a layer."""
    channels, outputs = channels_of(module), len(weight_of(module))
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return Widths(channels // groups, channels, outputs // groups)


def channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """A view of a layer's input as [..., channels]."""
    kind = kind_of(module)
    return x if kind is None else x.movedim(kind.axis, -1)


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The same layer with another weight, shaped as `weight_of` returns it. Everything else is shared."""
    return with_parameter(layer, in_layout(layer, weight, layer.weight.shape))  # type: ignore[arg-type]


def with_parameter(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The same layer with another tensor as its parameter `weight`, as it is stored. Everything else is shared."""
    other = copy.copy(layer)
    other._parameters = dict(layer._parameters)  # copy.copy shares the dictionary itself
    other.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    return other
