"""Products of codes on NVIDIA GPUs: of 8-bit integers in our own kernels, of 8-bit floats and 4-bit weights in torch's."""

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import linear

from sqbench.execution.accepts import EVERY_DTYPE, ROUNDED
from sqbench.execution.codes import CodedLayer, Codes, rescale
from sqbench.execution.torch_packed import TorchInt4Weight
from sqbench.formats.accepts import Accepts
from sqbench.quant.layers import QuantLayer

INT8_CAPABILITY, INT4_CAPABILITY, FLOAT8_CAPABILITY = (7, 5), (8, 0), (8, 9)
FLOAT8_MULTIPLE = 16  # of input and output channels in a product of 8-bit floats
TILES = 8  # inner steps of 16 input channels in the int4 layout
FEW_ROWS = 16  # up to so many rows, torch's int4 kernel beats a float product; it reads the weight again for every row


def refuse_gpu(needed: tuple[int, int], device: torch.device) -> str | None:
    """The reason why a GPU cannot run a kernel: it is too old, or Triton is missing. None if it can."""
    found = torch.cuda.get_device_capability(device)
    if found < needed:
        return f"needs compute capability {needed[0]}.{needed[1]}, {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}"
    return None if find_spec("triton") is not None else "needs Triton, which torch brings on Linux"


class CudaInt8(CodedLayer):
    """Linear layers over one input as a single product of signed codes. Scales are applied to the 32-bit sums."""

    kernel = "cuda int8"
    device = "cuda"
    merges = True
    unsigned = False

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.encoded.codes for layer in layers])
        self.register_buffer("packed", codes.contiguous(), persistent=False)
        self.register_buffer("column_sums", codes.sum(1, dtype=torch.int32), persistent=False)
        self.packed: Tensor
        self.column_sums: Tensor

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        return refuse_gpu(INT8_CAPABILITY, layer.weight.device)

    def product(self, codes: Codes) -> Tensor:
        from sqbench.execution import triton_kernels

        result = triton_kernels.int8_linear(
            codes.values.view(-1, codes.values.shape[-1]),
            self.packed,
            self.scale,
            codes.params.scale,
            codes.params.zero_point,
            self.column_sums,
            self.bias,
            self.weight.dtype,
            symmetric=self.activation.fmt.symmetric,
        )
        return result.view(*codes.values.shape[:-1], self.out_features)


class CudaFloat8(CodedLayer):
    """Linear layers over one input as a single product of E4M3 codes, summed in float32.

    Scales are applied to the sums, so that every mixture of a scale per tensor, channel and token takes the same product.
    """

    kernel = "cuda fp8"
    device = "cuda"
    merges = True
    unsigned = False
    weights = Accepts(
        "8-bit float products take weights",
        {"element": ("e4m3",), "granularity": ("tensor", "channel"), "scale": EVERY_DTYPE},
    )
    inputs = Accepts(
        "8-bit float products take inputs",
        {"element": ("e4m3",), "granularity": ("tensor", "token"), "dynamic": (True, False), "scale": EVERY_DTYPE},
    )

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        codes = torch.cat([layer.encoded.codes for layer in layers]).contiguous()
        self.register_buffer("packed", codes, persistent=False)
        self.register_buffer("one", torch.ones((), device=codes.device), persistent=False)
        self.packed: Tensor
        self.one: Tensor

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        outputs, width = layer.shape
        if outputs % FLOAT8_MULTIPLE or width % FLOAT8_MULTIPLE:
            return f"{cls.kernel} takes multiples of {FLOAT8_MULTIPLE} input and output channels, not {width} and {outputs}"
        return refuse_gpu(FLOAT8_CAPABILITY, layer.weight.device)

    def product(self, codes: Codes) -> Tensor:
        rows = codes.values.reshape(-1, codes.values.shape[-1]).view(torch.float8_e4m3fn)
        weight = self.packed.view(torch.float8_e4m3fn).t()
        sums = torch._scaled_mm(rows, weight, self.one, self.one, out_dtype=torch.float32)
        result = rescale(sums.mul_(self.scale), codes.params, self.scale, self.bias, symmetric=True)
        return result.view(*codes.values.shape[:-1], self.out_features)


class CudaInt4Weight(TorchInt4Weight):
    """4-bit weights in groups, with bfloat16 activations."""

    kernel = "cuda int4 weight-only"
    device = "cuda"
    dtypes = (torch.bfloat16,)
    weights = Accepts(  # nobody has seen it multiply by a negative scale yet
        "the GPU's int4 kernel takes weights", {**TorchInt4Weight.weights.values, "convention": ROUNDED}
    )
    multiple = 8

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        _, width = layer.shape
        if width % (TILES * 16):
            return f"the int4 kernel takes a multiple of {TILES * 16} input channels, not {width}"
        return super().hindrance(layer) or refuse_gpu(INT4_CAPABILITY, layer.weight.device)

    def pack(self, codes: Tensor) -> Tensor:
        unsigned = (codes + 8).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(unsigned[:, ::2] << 4 | unsigned[:, 1::2], TILES)

    def multiply(self, rows: Tensor) -> Tensor:
        if len(rows) <= FEW_ROWS:
            product: Tensor = torch.ops.aten._weight_int4pack_mm(rows, self.packed, self.group_size, self.pairs)
            return product
        from sqbench.execution import triton_kernels

        return linear(rows, triton_kernels.dequantize_int4(self.packed, self.group_size, self.pairs))
