"""Products of MXFP8 and NVFP4 on NVIDIA GPUs that have them, by torch's scaled matrix product. It sums in float32.

The product reads a scale for every block of 16 or 32 inputs itself. A GPU is only used if it agrees with the simulation on a small
layer, because the order of scales in memory is not told by any error.
"""

from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, SwizzleType, pad, scaled_mm

from sqbench.execution.base import IntegerLayer
from sqbench.execution.cuda import refuse_gpu
from sqbench.formats.accepts import Accepts
from sqbench.formats.codec import EncodedTensor, encode
from sqbench.formats.format import Format
from sqbench.formats.scale import ORDERS, POWERS, Scale
from sqbench.formats.scaling import E4M3_LARGEST
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

CAPABILITY = (10, 0)
TILE_ROWS, TILE_COLUMNS = 128, 4  # scales are stored tile by tile
MULTIPLE = 32  # of input and output channels
TOLERANCE = 1e-3  # relative; sums in float32 differ from the simulation by less


def tiled(scales: Tensor) -> Tensor:
    """Scales [rows, blocks] in the order that the product reads, flat.

    Tiles of 128 x 4 follow each other along a row of tiles. Inside a tile the scale of row r and block b has place
    16 (r mod 32) + 4 (r div 32) + b (cuBLAS, "1D Block Scaling Factors Layout"). Missing rows and blocks are 0.
    """
    rows, blocks = scales.shape
    whole = pad(scales.view(torch.uint8), (0, -blocks % TILE_COLUMNS, 0, -rows % TILE_ROWS))
    tiles = whole.unflatten(1, (-1, TILE_COLUMNS)).unflatten(0, (-1, TILE_ROWS // 32, 32))  # [row tiles, 4, 32, column tiles, 4]
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1).view(scales.dtype)


class BlockScaled(IntegerLayer):
    """Linear layers over one input as a single product of codes with block scales."""

    device = "cuda"
    merges = True
    inputs: ClassVar[Accepts]
    natural: ClassVar[Format]  # of weights

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        assert isinstance(layers[0].activation, ActivationQuantizer)
        self.fmt = layers[0].activation.fmt
        weights = [layer.encoded for layer in layers]
        self.register_buffer("packed", self.operand(torch.cat([one.codes for one in weights])), persistent=False)
        scales = torch.cat([self.stored(one) for one in weights])
        self.register_buffer("scales", tiled(scales), persistent=False)
        self.whole = self.second(weights[0].format)
        self.packed: Tensor
        self.scales: Tensor

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        return super().takes(layer) and layer.activation is not None

    @classmethod
    def hindrance(cls, layer: QuantLayer) -> str | None:
        outputs, width = layer.shape
        if outputs % MULTIPLE or width % MULTIPLE:
            return f"{cls.kernel} takes multiples of {MULTIPLE} input and output channels, not {width} and {outputs}"
        return refuse_gpu(CAPABILITY, layer.weight.device) or _disagrees(cls, str(layer.weight.device))

    @classmethod
    def operand(cls, codes: Tensor) -> Tensor:
        """Codes [rows, in] as the product reads them."""
        raise NotImplementedError

    @classmethod
    def stored(cls, encoded: EncodedTensor) -> Tensor:
        """The scales [rows, blocks] in the dtype that the product reads."""
        raise NotImplementedError

    @classmethod
    def second(cls, fmt: Format) -> float:
        """The number that all scales of a tensor are multiplied by."""
        return 1.0

    @classmethod
    def multiply(cls, rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
        """The product of codes [rows, in] and [out, in] with tiled scales: [rows, out] float32."""
        recipe, order = ScalingType[f"BlockWise1x{cls.natural.group_size}"], SwizzleType.SWIZZLE_32_4_4
        given = rows, weight.t(), row_scales, recipe, weight_scales, recipe
        return scaled_mm(*given, swizzle_a=order, swizzle_b=order, output_dtype=torch.float32)

    def run(self, x: Tensor) -> Tensor:
        rows = encode(x.reshape(-1, x.shape[-1]), self.fmt)
        sums = self.multiply(self.operand(rows.codes), tiled(self.stored(rows)), self.packed, self.scales)
        result = sums.mul_(self.whole * self.second(rows.format))
        result = result if self.bias is None else result.add_(self.bias)
        return result.view(*x.shape[:-1], self.out_features).to(self.weight.dtype)


class CudaMxfp8(BlockScaled):
    """MXFP8: blocks of 32 E4M3 codes whose scale is a power of two."""

    kernel = "cuda mxfp8"
    natural = Format(element="e4m3", granularity="group", group_size=32, scale=Scale("e8m0", "floor"))
    weights = Accepts(
        "MXFP8 products take weights",
        {
            "element": ("e4m3",),
            "granularity": ("group",),
            "group_size": (32,),
            "scale": tuple(Scale("e8m0", rule) for rule in POWERS),
        },
    )
    inputs = Accepts("MXFP8 products take inputs", {**weights.values, "dynamic": (True,)})

    @classmethod
    def operand(cls, codes: Tensor) -> Tensor:
        return codes.contiguous().view(torch.float8_e4m3fn)

    @classmethod
    def stored(cls, encoded: EncodedTensor) -> Tensor:
        return encoded.by_row(encoded.scale).to(torch.float8_e8m0fnu)


class CudaNvfp4(BlockScaled):
    """NVFP4: blocks of 16 E2M1 codes with an E4M3 scale, and one float32 scale for the tensor."""

    kernel = "cuda nvfp4"
    natural = Format(4, element="e2m1", granularity="group", group_size=16, scale=Scale("e4m3", second="float32"))
    weights = Accepts(
        "NVFP4 products take weights",
        {
            "bits": (4,),
            "element": ("e2m1",),
            "granularity": ("group",),
            "group_size": (16,),
            "scale": tuple(Scale("e4m3", second="float32", order=order) for order in ORDERS if order != "auto-round"),
        },
    )
    inputs = Accepts("NVFP4 products take inputs", {**weights.values, "dynamic": (True,)})

    @classmethod
    def operand(cls, codes: Tensor) -> Tensor:
        return (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.float4_e2m1fn_x2)

    @classmethod
    def stored(cls, encoded: EncodedTensor) -> Tensor:
        return (encoded.by_row(encoded.scale) / cls.second(encoded.format)).to(torch.float8_e4m3fn)

    @classmethod
    def second(cls, fmt: Format) -> float:
        assert fmt.amax is not None
        return (fmt.amax or 1.0) / (E4M3_LARGEST * fmt.levels)


@lru_cache(maxsize=16)
def _disagrees(kernel: type[BlockScaled], device: str) -> str | None:
    """The reason why a GPU's product is not used, from a small layer of random numbers. None if it agrees with the simulation."""
    try:
        error = deviation(kernel, torch.device(device))
    except (RuntimeError, TypeError, ValueError) as failure:
        reason, _, _ = str(failure).strip().partition("\n")
        return f"torch has no such product here: {reason}"
    return None if error < TOLERANCE else f"torch's product differs from the simulation by {error:.1g} on this GPU"


@torch.no_grad()
def deviation(kernel: type[BlockScaled], device: torch.device) -> float:
    """The relative difference of a kernel from the simulation, on a layer and an input with more than one tile of scales."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(192, 160, device=device)
    weight = torch.randn(160, 192, generator=generator) * torch.logspace(-2, 2, 192)
    layer.weight = nn.Parameter(weight.to(device), requires_grad=False)
    inputs = ActivationQuantizer(replace(kernel.natural, dynamic=True))
    quantized = QuantLayer(layer, encode(weight_of(layer), kernel.natural), inputs)
    x = (torch.randn(140, 192, generator=generator) * torch.logspace(2, -2, 192)).to(device)
    wanted = quantized(x)
    return float((kernel([quantized])(x) - wanted).norm() / wanted.norm())
