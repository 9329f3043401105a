"""The codec: everything that knows how a format turns numbers into codes and back. Pure functions.

`encode` gives codes with their scales, `decode` the numbers that they stand for, and `round_trip` both in one step. The parts of
these are here too, for code that chooses ranges. An integer code q stands for (q - zero_point) * scale.

The parts work on *blocks*: a view of the tensor whose last axis holds the values that share one scale (`to_blocks`). Ranges and
parameters keep that axis with size 1, so they broadcast.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sqbench.formats.format import Format

Limits = tuple[Tensor, Tensor]  # clipping ranges (lo, hi) over blocks


class QParams(NamedTuple):
    """Scale (float, not 0) and zero-point (an integer held in the scale's dtype), broadcastable against the blocks.

    A scale is negative only under the convention `signed`.
    """

    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor in a format, as plain data. Kernels, files and tables read it. Nothing computes codes from floats again.

    Attributes:
        codes: signed integer codes in the tensor's own shape, int8.
        scale, zero_point: one for each block, broadcastable against `to_blocks(codes, format)`. float32 at least.
        format: the format of the codes.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    format: Format

    @property
    def params(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def by_row(self, values: Tensor) -> Tensor:
        """Scales or zero-points of a matrix as [rows, groups] float32. A row without groups has one group."""
        narrow = values.float().squeeze(-1)  # [1] per tensor, [rows] per channel, [rows, groups] per group
        return narrow.view(len(narrow), -1).expand(len(self.codes), -1).contiguous()


# ---- Whole tensors -----------------------------------------------------------------------------------------------------------


def encode(x: Tensor, fmt: Format, limits: Limits | None = None) -> EncodedTensor:
    """Round a tensor to the nearest codes of a format.

    Args:
        x: a weight [out, in], or an activation [..., in].
        limits: clipping ranges (lo, hi) over the blocks of x. None takes each block's own minimum and maximum.
    """
    blocks = to_blocks(x, fmt)
    params = qparams(*(block_range(blocks) if limits is None else limits), fmt)
    return EncodedTensor(quantize(blocks, params, fmt).view(x.shape), *params, fmt)


def decode(encoded: EncodedTensor) -> Tensor:
    """The real values of an encoded tensor, in its shape and in the dtype of its scales."""
    return dequantize(to_blocks(encoded.codes, encoded.format), encoded.params).view(encoded.codes.shape)


def round_trip(x: Tensor, fmt: Format, limits: Limits | None = None) -> Tensor:
    """decode(encode(x)) in the dtype of x, in one step."""
    blocks = to_blocks(x, fmt)
    params = qparams(*(block_range(blocks) if limits is None else limits), fmt)
    return fake_quantize(blocks, params, fmt).view(x.shape).to(x.dtype)


# ---- Blocks, ranges and parameters -------------------------------------------------------------------------------------------


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


def block_range(blocks: Tensor) -> Limits:
    """Smallest and largest value of every block, widened to contain 0 so that the zero-point is itself a code.

    The result is at least float32. A scale computed in bfloat16 would cost more accuracy than 8-bit codes do.
    """
    wide = torch.promote_types(blocks.dtype, torch.float32)
    return blocks.amin(-1, keepdim=True).to(wide).clamp_(max=0), blocks.amax(-1, keepdim=True).to(wide).clamp_(min=0)


def qparams(lo: Tensor, hi: Tensor, fmt: Format) -> QParams:
    """Scale and zero-point for clipping ranges [lo, hi].

    Symmetric: scale = max(|lo|, |hi|) / qmax, zero-point 0. With the convention `signed`, scale = lo / -2^(b-1) if |lo| >= |hi|,
    else hi / -2^(b-1). Asymmetric: scale = (hi - lo) / (2^b - 1) and zero_point = code_min - round(lo / scale) (Jacob et al., 2018,
    eq. 1 and section 3). A range of width 0 gives scale 1.
    """
    if fmt.symmetric and fmt.convention == "signed":
        span = torch.where(lo.abs() >= hi.abs(), -lo, -hi)
    else:
        span = torch.maximum(lo.abs(), hi.abs()) if fmt.symmetric else hi - lo
    scale = span / torch.full_like(span, fmt.levels)  # a GPU divides by a tensor as a CPU does, but multiplies by 1 / number
    if fmt.scale.dtype != "float32":
        scale = scale.to(getattr(torch, fmt.scale.dtype)).to(lo.dtype)
    # For dead channels and ranges so narrow that the scale underflows. Any scale is exact for 0, and 1 never gives inf or nan.
    scale = torch.where(scale.abs() > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if fmt.symmetric else fmt.code_min - torch.round(lo / scale)
    return QParams(scale, zero_point)


def bounds(params: QParams, fmt: Format, beyond: float = 0) -> Limits:
    """The smallest and the largest number that the codes of each block stand for, and `beyond` steps further out."""
    first = (fmt.code_min - params.zero_point - beyond) * params.scale
    last = (fmt.code_max - params.zero_point + beyond) * params.scale
    return torch.minimum(first, last), torch.maximum(first, last)  # a negative scale exchanges them


# ---- Codes -------------------------------------------------------------------------------------------------------------------


def quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """The codes clamp(round(x / scale) + zero_point): int8, same shape."""
    codes = _steps(blocks, params.scale).add_(params.zero_point)
    return codes.clamp_(fmt.code_min, fmt.code_max).to(torch.int8)


def dequantize(codes: Tensor, params: QParams) -> Tensor:
    """The real values of codes, in the dtype of the scale."""
    return (codes.to(params.scale.dtype) - params.zero_point) * params.scale


def fake_quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """dequantize(quantize(x)), without leaving float: the values that integer execution would see.

    They are equal for all finite x. Only here can a 0 be negative, and only here is a nan still a nan.
    """
    codes = _steps(blocks, params.scale)
    if fmt.symmetric:
        return codes.clamp_(fmt.code_min, fmt.code_max).mul_(params.scale)
    # The bounds are numbers, because a clamp between tensors takes longer than all the rest.
    return codes.add_(params.zero_point).clamp_(fmt.code_min, fmt.code_max).sub_(params.zero_point).mul_(params.scale)


def _steps(blocks: Tensor, scale: Tensor) -> Tensor:
    """round(x / scale), computed in at least the scale's precision. In bfloat16 the quotient itself would be rounded first."""
    return (blocks.to(torch.promote_types(blocks.dtype, scale.dtype)) / scale).round_()
