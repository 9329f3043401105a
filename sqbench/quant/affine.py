"""The affine map between real numbers and codes: x ~ (q - zero_point) * scale. Pure functions. The map is written only here.

Every function works on *blocks*: a view of the tensor whose last axis holds the values that share one scale (`to_blocks`).
Ranges and parameters keep that axis with size 1, so they broadcast.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.quant.formats import Format


class QParams(NamedTuple):
    """Scale (positive, float) and zero-point (an integer held in the scale's dtype), broadcastable against the blocks."""

    scale: Tensor
    zero_point: Tensor


def to_blocks(x: Tensor, fmt: Format) -> Tensor:
    """View x (weight [out, in] or activation [..., in]) so that the last axis holds the values that share a scale.

    tensor -> [1, numel], channel and token -> [rows, in], group -> [rows, in / g, g].
    """
    if fmt.granularity == "tensor":
        return x.reshape(1, -1)
    rows = x.reshape(-1, x.shape[-1])
    if fmt.granularity == "group":
        assert fmt.group_size is not None
        return rows.unflatten(-1, (-1, fmt.group_size))
    return rows


def block_range(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every block, widened to contain 0 so that the zero-point is itself a code.

    The result is at least float32. A scale computed in bfloat16 would cost more accuracy than 8-bit codes do.
    """
    wide = torch.promote_types(blocks.dtype, torch.float32)
    return blocks.amin(-1, keepdim=True).to(wide).clamp_(max=0), blocks.amax(-1, keepdim=True).to(wide).clamp_(min=0)


def qparams(lo: Tensor, hi: Tensor, fmt: Format) -> QParams:
    """Scale and zero-point for clipping ranges [lo, hi].

    Symmetric: scale = max(|lo|, |hi|) / qmax, zero-point 0. Asymmetric: scale = (hi - lo) / (2^b - 1) and
    zero_point = code_min - round(lo / scale) (Jacob et al., 2018, eq. 1 and section 3). A range of width 0 gives scale 1.
    """
    span = torch.maximum(lo.abs(), hi.abs()) if fmt.symmetric else hi - lo
    scale = span / torch.full_like(span, fmt.levels)  # a GPU divides by a tensor as a CPU does, but multiplies by 1 / number
    if fmt.scale_dtype != "float32":
        scale = scale.to(getattr(torch, fmt.scale_dtype)).to(lo.dtype)
    # For dead channels and ranges so narrow that the scale underflows. Any scale is exact for 0, and 1 never gives inf or nan.
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if fmt.symmetric else fmt.code_min - torch.round(lo / scale)
    return QParams(scale, zero_point)


def _steps(blocks: Tensor, scale: Tensor) -> Tensor:
    """round(x / scale), computed in at least the scale's precision. In bfloat16 the quotient itself would be rounded first."""
    return (blocks.to(torch.promote_types(blocks.dtype, scale.dtype)) / scale).round_()


def quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """The codes clamp(round(x / scale) + zero_point): int8, same shape."""
    codes = _steps(blocks, params.scale).add_(params.zero_point)
    return codes.clamp_(fmt.code_min, fmt.code_max).to(torch.int8)


def dequantize(codes: Tensor, params: QParams) -> Tensor:
    """The real values of codes, in the dtype of the scale."""
    return (codes.to(params.scale.dtype) - params.zero_point) * params.scale


def fake_quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """dequantize(quantize(x)), without leaving float: the values that integer execution would see."""
    codes = _steps(blocks, params.scale)
    if fmt.symmetric:
        return codes.clamp_(fmt.code_min, fmt.code_max).mul_(params.scale)
    # The bounds are numbers, because a clamp between tensors takes longer than all the rest.
    return codes.add_(params.zero_point).clamp_(fmt.code_min, fmt.code_max).sub_(params.zero_point).mul_(params.scale)


def round_trip(x: Tensor, fmt: Format, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Fake-quantize a whole tensor with `limits` (lo, hi) over its blocks, or by default with its own min-max ranges."""
    blocks = to_blocks(x, fmt)
    params = qparams(*(block_range(blocks) if limits is None else limits), fmt)
    return fake_quantize(blocks, params, fmt).view(x.shape).to(x.dtype)
