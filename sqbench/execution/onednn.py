"""Integer products on the CPU, by oneDNN: unsigned 8-bit activations times signed 8-bit weights, summed in 32 bits.

A code of fewer bits is also a code of 8 bits, so every width from 2 to 8 is executed. The kernel itself applies the ranges that
calibration fixed, the bias and the activation function. Ranges of run time are applied afterwards (`codes.rescale`).
"""

from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sqbench.execution.accepts import CODED_INPUTS
from sqbench.execution.codes import OFFSET, CodedLayer, Codes, rescale
from sqbench.formats.accepts import Accepts
from sqbench.quant.access import kind_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

LINEAR_POSTS = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
CONV_POSTS = {"none": ("none", ""), "relu": ("relu", ""), "silu": ("swish", "")}


@lru_cache(maxsize=1)
def sums_exactly() -> bool:
    """Whether this CPU sums products of 8-bit codes without saturation.

    Without VNNI, neighbouring products are summed in 16 bits. The test is a product that would saturate there.
    """
    codes = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
    ones, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    found = torch.ops.onednn.qlinear_pointwise(codes, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((found == 255 * 127 * 64).all())


@lru_cache(maxsize=64)
def _zeros(count: int) -> Tensor:
    """Zero-points of symmetric weights, one tensor for all layers of a width."""
    return torch.zeros(count, dtype=torch.int64)


class OneDnnLayer(CodedLayer):
    """The common part of linear layers and convolutions: the arguments of their kernels."""

    posts: ClassVar[dict[str, tuple[str, str]]] = LINEAR_POSTS
    packed: Tensor

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        self.input_scale = self.activation.scale
        self.input_zero = self.activation.zero_point + OFFSET

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        assert layer.format is not None
        # 7-bit codes fit with every activation: 255 (64 + 64) < 2^15
        if layer.format.bits > 7 and not sums_exactly():
            return "oneDNN's 8-bit products saturate on this CPU, which has no VNNI"
        return None

    def fuses(self, post: str) -> bool:
        return self.is_static and post in self.posts

    def returned(self) -> torch.dtype:
        """The dtype that the kernel itself writes."""
        if self.output is not None:
            return torch.uint8
        return torch.bfloat16 if self.is_static and self.weight.dtype == torch.bfloat16 else torch.float32

    def before(self) -> tuple[Any, ...]:
        """The arguments between the packed weight and a convolution's geometry."""
        bias = None if self.bias is None or not self.is_static else self.bias.float()
        return self.scale, _zeros(self.out_features), bias

    def after(self) -> tuple[Any, ...]:
        """The arguments after a convolution's geometry."""
        scale, zero = (1.0, 0) if self.output is None else (self.output.scale, self.output.zero_point + OFFSET)
        name, algorithm = self.posts[self.post]
        return scale, zero, self.returned(), name, [], algorithm

    def within_codes(self, result: Tensor) -> Tensor:
        """The kernel's result. Codes are clipped to the range of their format if it has fewer than 256."""
        if self.output is None or self.output.fmt.code_max - self.output.fmt.code_min == 255:
            return result
        return result.clamp_(self.output.fmt.code_min + OFFSET, self.output.fmt.code_max + OFFSET)


class OneDnnLinear(OneDnnLayer):
    """Linear layers over one input as a single product."""

    kernel = "onednn int8"
    merges = True

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.encoded.codes for layer in layers])
        self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        sums = None if self.is_static else codes.sum(1, dtype=torch.float32) * self.scale
        self.register_buffer("column_sums", sums, persistent=False)
        self.column_sums: Tensor

    def product(self, codes: Codes) -> Tensor:
        result = torch.ops.onednn.qlinear_pointwise(
            codes.values, self.input_scale, self.input_zero, self.packed, *self.before(), *self.after()
        )
        if self.is_static:
            return self.within_codes(result)
        return rescale(result, codes.params, self.column_sums, self.bias, self.activation.fmt.symmetric)


class OneDnnConv(OneDnnLayer):
    """A two-dimensional convolution."""

    kernel = "onednn int8 convolution"
    convolves = True
    inputs = Accepts(
        "8-bit convolutions take inputs",  # a window spans many pixels, which must share a scale
        {**CODED_INPUTS.values, "granularity": ("tensor",)},
    )
    posts = CONV_POSTS

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        (quantized,) = layers
        layer = quantized.layer
        assert isinstance(layer, nn.Conv2d)
        kind = kind_of(layer)
        self.same = kind is not None and kind.pads
        padding = [0, 0] if self.same or isinstance(layer.padding, str) else list(layer.padding)
        self.kernel_size, self.stride, self.dilation = list(layer.kernel_size), list(layer.stride), list(layer.dilation)
        self.geometry = (self.stride, padding, self.dilation, layer.groups)
        codes = quantized.encoded.codes.view(quantized.size)
        self.packed = torch.ops.onednn.qconv_prepack(codes, self.scale, self.input_scale, self.input_zero, *self.geometry, None)

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        if (reason := super().hindrance(layer)) is not None:
            return reason
        assert isinstance(layer.activation, ActivationQuantizer)
        assert isinstance(layer.layer, nn.Conv2d)
        if layer.activation.fmt.dynamic and not layer.activation.fmt.symmetric:
            return "8-bit convolutions have no kernel for a zero-point that changes at run time"
        if layer.layer.padding_mode != "zeros" or layer.layer.padding == "same":
            return f"padding {layer.layer.padding_mode} {layer.layer.padding} has no integer kernel"
        return None

    def product(self, codes: Codes) -> Tensor:
        values = self._padded(codes.values) if self.same else codes.values
        result = torch.ops.onednn.qconv_pointwise(
            values, self.input_scale, self.input_zero, self.packed, *self.before(), *self.geometry, *self.after()
        )
        if self.is_static:
            return self.within_codes(result)
        result = result.mul_(codes.params.scale)
        return result if self.bias is None else result.add_(self.bias.view(-1, 1, 1))

    def _padded(self, codes: Tensor) -> Tensor:
        """Codes padded with the zero-point, so that the output has ceil(size / stride) pixels along each axis."""
        amounts: list[int] = []
        for axis in (1, 0):
            size, stride = codes.shape[2 + axis], self.stride[axis]
            reach = (-(-size // stride) - 1) * stride + (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            missing = max(reach - size, 0)
            amounts += [missing // 2, missing - missing // 2]
        return pad(codes, amounts, value=self.input_zero) if any(amounts) else codes
