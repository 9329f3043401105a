"""Layers on our own CPU kernels (`native`): 8-bit products that are exact without VNNI, and weight-only products in float32."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from sqbench.execution import native
from sqbench.execution.accepts import WEIGHT_RULES
from sqbench.execution.base import IntegerLayer
from sqbench.execution.codes import OFFSET, CodedLayer, CodeQuantizer, Codes
from sqbench.execution.simulated import OnePassQuantizer
from sqbench.formats.accepts import Accepts, Multiples
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

FEW_ROWS = 8  # up to so many rows, a product reads packed weights; for more, unpacking them once is cheaper


class NativeInt8(CodedLayer):
    """Linear layers over one input as a single product. Ranges are static or dynamic, per tensor or per token."""

    kernel = "native int8"
    merges = True

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.encoded.codes for layer in layers])
        self.register_buffer("packed", native.pack_int8(codes), persistent=False)
        self.register_buffer("column_sums", codes.sum(1, dtype=torch.int32), persistent=False)
        self.packed: Tensor
        self.column_sums: Tensor

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        return native.unavailable()

    def fuses(self, post: str) -> bool:
        return True

    def product(self, codes: Codes) -> Tensor:
        values = codes.values.reshape(-1, codes.values.shape[-1]).contiguous()
        scale, zero = (part.float().view(-1) for part in (codes.params.scale, codes.params.zero_point))
        result = native.int8_linear(
            values,
            self.packed,
            self.out_features,
            self.scale,
            scale,
            zero + OFFSET,
            self.column_sums,
            None if self.bias is None else self.bias.float(),
            self.post,
            None if self.output is None else _requantization(self.output),
        )
        return result.view(*codes.values.shape[:-1], self.out_features)


def _weights(bits: range) -> Accepts:
    """All integer weights of these widths."""
    return Accepts(
        "native weight-only kernels take weights",
        {
            "bits": bits,
            "symmetric": (True, False),
            "granularity": ("tensor", "channel", "group"),
            "group_size": Multiples(8),
            **WEIGHT_RULES,
        },
    )


class NativeWeightOnly(IntegerLayer):
    """A linear layer on float32 inputs, whose weight stays in 4 or 8 bits in memory. Scales are per channel or group.

    Codes of another width are stored in the next larger of these widths. A quantized input is quantized in simulation.
    """

    merges = True
    simulates_inputs = True
    dtypes = (torch.float32,)
    bits: ClassVar[int]

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.encoded.codes for layer in layers])
        self.register_buffer("packed", native.pack_weight(codes, self.bits), persistent=False)
        self.packed: Tensor
        self.in_features = codes.shape[1]
        weights = [layer.encoded for layer in layers]
        self.register_buffer("scale", _by_columns([one.by_row(one.scale) for one in weights]), persistent=False)
        zeros = [one.by_row(one.zero_point).to(torch.int16) for one in weights]
        self.register_buffer("zero_point", _by_columns(zeros), persistent=False)
        self.scale: Tensor
        self.zero_point: Tensor
        activation = layers[0].activation
        self.activation = OnePassQuantizer(activation) if isinstance(activation, ActivationQuantizer) else None

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        return (
            super().takes(layer)
            and layer.format is not None
            and layer.format.is_integer
            and layer.format.bits in cls.weights.values["bits"]
        )

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        assert layer.format is not None
        _, in_features = layer.shape
        groups = in_features // (layer.format.group_size or in_features)
        return native.refuses(in_features, groups) or native.unavailable()

    def run(self, x: Tensor) -> Tensor:
        x = x if self.activation is None else self.activation(x)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if len(rows) <= FEW_ROWS:
            result = native.weight_only_linear(rows, self.packed, self.bits, self.scale, self.zero_point, self.bias)
            return result.view(*x.shape[:-1], self.out_features)
        weight = native.dequantize(self.packed, self.bits, self.scale, self.zero_point, self.out_features, self.in_features)
        return linear(x, weight, self.bias)


class NativeInt4Weight(NativeWeightOnly):
    """Weights of up to 4 bits."""

    kernel = "native int4 weight-only"
    bits = 4
    weights = _weights(range(2, 5))


class NativeInt8Weight(NativeWeightOnly):
    """Weights of 5 to 8 bits."""

    kernel = "native int8 weight-only"
    bits = 8
    weights = _weights(range(5, 9))


def _requantization(output: CodeQuantizer) -> native.Requantization:
    """How a product becomes the codes that another layer's quantizer would make of it."""
    low, high = output.fmt.code_min + OFFSET, output.fmt.code_max + OFFSET
    return native.Requantization(output.scale, output.zero_point + OFFSET, low, high)


def _by_columns(parts: list[Tensor]) -> Tensor:
    """The parts, one below the other. They are stored by columns, as the kernels read them."""
    return torch.cat(parts).t().contiguous().t()
