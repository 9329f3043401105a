"""Integer products on NVIDIA GPUs: torch's int8 matrix product and its 4-bit weight-only kernel."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqbench.execution.codes import CodedLayer, Codes, refuse_formats
from sqbench.execution.torch_packed import TorchInt4Weight
from sqbench.quant.layers import QuantLayer

INT8_CAPABILITY, INT4_CAPABILITY = (7, 5), (8, 0)
LEAST_ROWS = 17  # of torch._int_mm
TILES = 8  # of the int4 layout: inner steps of 16 input channels


def refuse_capability(needed: tuple[int, int], device: torch.device) -> str | None:
    """Why a GPU is too old for a kernel; None if it is not."""
    found = torch.cuda.get_device_capability(device)
    if found >= needed:
        return None
    return f"needs compute capability {needed[0]}.{needed[1]}, {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}"


class CudaInt8(CodedLayer):
    """Linear layers over one input as a single product of signed codes; scales are applied to the 32-bit sums."""

    kernel = "cuda int8"
    device = "cuda"
    merges = True
    unsigned = False

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.codes() for layer in layers])
        sums = codes.sum(1, dtype=torch.int32)
        self.register_buffer("packed", codes.contiguous(), persistent=False)
        self.register_buffer("column_sums", sums, persistent=False)
        self.packed: Tensor
        self.column_sums: Tensor
        if self.packed.is_cuda and find_spec("triton") is not None:  # rounding, and rescaling below, become one kernel each
            self.activation.rounding = torch.compile(self.activation.rounding, dynamic=True)
            self.finish = torch.compile(self.finish, dynamic=True)  # type: ignore[method-assign]

    @classmethod
    def refusal(cls, layer: QuantLayer) -> str | None:
        if (reason := refuse_formats(layer.format, layer.activation)) is not None:
            return reason
        width, out = layer.codes().shape[1], layer.out_features
        if width % 8 or out % 8:
            return f"torch._int_mm takes multiples of 8 channels, not {width} x {out}"
        return refuse_capability(INT8_CAPABILITY, layer.weight.device)

    def product(self, codes: Codes) -> Tensor:
        rows = codes.values.view(-1, codes.values.shape[-1])
        padded = pad(rows, (0, 0, 0, LEAST_ROWS - len(rows))) if len(rows) < LEAST_ROWS else rows
        sums = torch._int_mm(padded, self.packed.t())[: len(rows)]
        return self.finish(sums, *codes.params).view(*codes.values.shape[:-1], self.out_features)

    def finish(self, sums: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Sums of code products [rows, out] as floats: scales, zero-point, bias."""
        result = (sums - zero_point * self.column_sums) * (scale * self.scale)
        return result if self.bias is None else result + self.bias


class CudaInt4Weight(TorchInt4Weight):
    """4-bit weights in groups, bfloat16 activations."""

    kernel = "cuda int4 weight-only"
    device = "cuda"
    multiple = 8

    @classmethod
    def refusal(cls, layer: QuantLayer) -> str | None:
        if layer.weight.dtype != torch.bfloat16:
            return f"the int4 kernel takes bfloat16, and the model is {layer.weight.dtype}"
        width = layer.codes().shape[1]
        if width % (TILES * 16):
            return f"the int4 kernel takes a multiple of {TILES * 16} input channels, not {width}"
        return super().refusal(layer) or refuse_capability(INT4_CAPABILITY, layer.weight.device)

    def pack(self, codes: Tensor) -> Tensor:
        unsigned = (codes + 8).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(unsigned[:, ::2] << 4 | unsigned[:, 1::2], TILES)

    def multiply(self, rows: Tensor) -> Any:
        return torch.ops.aten._weight_int4pack_mm(rows, self.packed, self.group_size, self.pairs)
