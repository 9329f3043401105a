"""Weight-only products by torch's packed kernels, for models in half precision. Scales are stored in the model's dtype.

In float32 these kernels run scalar loops on most CPUs. `native_layers` has others for float32.
"""

from typing import ClassVar

import torch
from torch import Tensor

from sqbench.execution.accepts import WEIGHT_RULES
from sqbench.execution.base import IntegerLayer
from sqbench.formats.accepts import Accepts
from sqbench.quant.layers import QuantLayer

HALVES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)


class TorchInt8Weight(IntegerLayer):
    """Symmetric 8-bit weights with a scale per output channel."""

    kernel = "torch int8 weight-only"
    merges = True
    dtypes = HALVES
    weights = Accepts(
        "torch's int8 kernel takes weights",
        {"bits": range(5, 9), "granularity": ("channel",), **WEIGHT_RULES},
    )

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        self.register_buffer("packed", torch.cat([layer.encoded.codes for layer in layers]).contiguous(), persistent=False)
        scales = [layer.encoded.scale.flatten() for layer in layers]
        self.register_buffer("scale", torch.cat(scales).to(self.weight.dtype), persistent=False)
        self.packed: Tensor
        self.scale: Tensor

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        return super().takes(layer) and _is_for(cls, layer)

    def run(self, x: Tensor) -> Tensor:
        result = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.packed, self.scale)
        result = result if self.bias is None else result + self.bias
        return result.view(*x.shape[:-1], self.out_features)


class TorchInt4Weight(IntegerLayer):
    """4-bit weights in groups. Scale and zero-point are stored as two numbers of the model's dtype."""

    kernel = "torch int4 weight-only"
    merges = True
    dtypes = HALVES
    weights = Accepts(
        "torch's int4 kernel takes weights",
        {
            "bits": range(2, 5),
            "symmetric": (True, False),
            "granularity": ("group",),
            "group_size": (32, 64, 128, 256),
            **WEIGHT_RULES,
        },
    )
    multiple: ClassVar[int] = 16  # of output channels

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        fmt = layers[0].format
        assert fmt is not None
        assert fmt.group_size is not None
        self.group_size = fmt.group_size
        self.register_buffer("packed", self.pack(torch.cat([layer.encoded.codes for layer in layers])), persistent=False)
        self.packed: Tensor
        params = [layer.encoded.params for layer in layers]
        scale = torch.cat([part.scale.squeeze(-1) for part in params])
        zero = torch.cat([part.zero_point.squeeze(-1) for part in params])
        pairs = torch.stack([scale, -zero * scale], -1)  # the kernel computes (code - 8) scale + zero with codes from 0 to 15
        self.register_buffer("pairs", pairs.transpose(0, 1).to(self.weight.dtype).contiguous(), persistent=False)
        self.pairs: Tensor

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        return super().takes(layer) and _is_for(cls, layer)

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        if layer.shape[0] % cls.multiple:
            return f"torch's int4 kernel takes a multiple of {cls.multiple} output channels, not {layer.shape[0]}"
        return None

    def pack(self, codes: Tensor) -> Tensor:
        """Signed weight codes [out, in] in the kernel's layout."""
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)

    def multiply(self, rows: Tensor) -> Tensor:
        """The product of `rows` [rows, in] and the weight."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group_size, self.pairs)

    def run(self, x: Tensor) -> Tensor:
        result = self.multiply(x.reshape(-1, x.shape[-1]))
        result = result if self.bias is None else result + self.bias
        return result.view(*x.shape[:-1], self.out_features)


def _is_for(kernel: type[IntegerLayer], layer: QuantLayer) -> bool:
    """Whether only the weight is quantized, to bits that the kernel takes, and activations are in half precision."""
    narrow = layer.format is not None and layer.format.is_integer and layer.format.bits in kernel.weights.values["bits"]
    return narrow and layer.activation is None and layer.weight.dtype in HALVES
