"""The codec: everything that knows how a format turns numbers into codes and back. Pure functions.

`encode` gives codes with their scales, `decode` the numbers that they stand for, and `round_trip` both in one step. The parts of
these are here too, for code that chooses ranges (`params.py`). A code stands for (its number - zero_point) * scale. Where the
zero-point is a minimum, a code stands for (its number - the smallest code) * scale + minimum.

The parts work on *blocks*: a view of the tensor whose last axis holds the values that share one scale (`to_blocks`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqbench.formats.blocks import BLOCKS
from sqbench.formats.format import Format
from sqbench.formats.grid import codes_of, nearest_, values_of
from sqbench.formats.params import Limits, QParams, block_range, moved, origin, qparams

IN_CACHE = 2**19  # values of one piece of a large tensor: 2 MB in float32


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor in a format, as plain data. Kernels, files and tables read it. Nothing computes codes from floats again.

    Attributes:
        codes: in the tensor's own shape. Integers are signed, int8. Others are the bits of the element, uint8. `BLOCKS` are rows of
            bytes, uint8, which hold their scales. `scale` and `zero_point` are empty then.
        scale, zero_point: one for each block, broadcastable against `to_blocks(codes, format)`. float32 at least. A scale of two
            levels is the product of both.
        format: the format of the codes. With two levels of scales, its `amax` is that of the tensor.
        columns: the order of columns in which groups are contiguous. None if they are as they stand.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    format: Format
    columns: Tensor | None = None

    @property
    def params(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        if (block := BLOCKS.get(self.format.element)) is None:
            return tuple(self.codes.shape)
        return *self.codes.shape[:-1], self.codes.shape[-1] // block.bytes * block.values

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
    fmt = of_tensor(fmt, x)
    blocks = to_blocks(x, fmt)
    params = qparams(*(block_range(blocks, fmt) if limits is None else limits), fmt)
    codes = from_blocks(quantize(blocks, params, fmt), fmt, x.shape)
    return EncodedTensor(codes, params.scale, params.zero_point, fmt)


def decode(encoded: EncodedTensor) -> Tensor:
    """The real values of an encoded tensor, in its shape and in the dtype of its scales."""
    fmt, codes = encoded.format, encoded.codes
    if not fmt.has_grid:
        return _of_blocks(codes, fmt.element)
    if encoded.columns is None:
        return from_blocks(dequantize(to_blocks(codes, fmt), encoded.params, fmt), fmt, codes.shape)
    ordered = decode(replace(encoded, codes=codes[:, encoded.columns], columns=None))
    return torch.empty_like(ordered).index_copy_(1, encoded.columns, ordered)


def _of_blocks(codes: Tensor, element: str) -> Tensor:
    """The float32 values of blocks of GGUF [rows, bytes]."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    values = dequantize(codes.cpu().numpy(), GGMLQuantizationType[element.upper()])
    return torch.from_numpy(values).to(codes.device)


def round_trip(x: Tensor, fmt: Format, limits: Limits | None = None) -> Tensor:
    """decode(encode(x)) in the dtype of x, in one step."""
    fmt = of_tensor(fmt, x)
    blocks = to_blocks(x, fmt)
    params = qparams(*(block_range(blocks, fmt) if limits is None else limits), fmt)
    return from_blocks(fake_quantize(blocks, params, fmt), fmt, x.shape).to(x.dtype)


def of_tensor(fmt: Format, x: Tensor) -> Format:
    """The format with what it must know of a whole tensor before parts of it are rounded. A format that knows it stays."""
    if not fmt.two_levels or fmt.amax is not None:
        return fmt
    lo, hi = torch.aminmax(x)
    return replace(fmt, amax=max(-float(lo), float(hi)))


# ---- Blocks ------------------------------------------------------------------------------------------------------------------


def to_blocks(x: Tensor, fmt: Format) -> Tensor:
    """View x (weight [out, in] or activation [..., in]) so that the last axis holds the values that share a scale.

    tensor -> [1, numel], channel and token -> [rows, in], group -> [rows, in / g, g]. Two-dimensional blocks are a copy, block ->
    [rows / r, in / g, r g]. Zeros fill the last of them, if r does not divide the rows.
    """
    if fmt.granularity == "tensor":
        return x.reshape(1, -1)
    rows = x.reshape(-1, x.shape[-1])
    if fmt.group_size is None:
        return rows
    groups = rows.unflatten(-1, (-1, fmt.group_size))
    if fmt.block_rows is None:
        return groups
    if missing := -len(groups) % fmt.block_rows:
        groups = pad(groups, (0, 0, 0, 0, 0, missing))
    return groups.unflatten(0, (-1, fmt.block_rows)).transpose(1, 2).flatten(2)


def from_blocks(blocks: Tensor, fmt: Format, shape: torch.Size) -> Tensor:
    """The tensor of a shape whose `to_blocks` are these."""
    if fmt.block_rows is None:
        return blocks.view(shape)
    return blocks.unflatten(2, (fmt.block_rows, -1)).transpose(1, 2).reshape(-1, shape[-1])[: shape[0]]


# ---- Codes -------------------------------------------------------------------------------------------------------------------


def quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """The codes of blocks, in their shape. Integers: clamp(round(x / scale) + zero_point), int8. Others: see `EncodedTensor`."""
    steps = _steps(blocks, params, fmt)
    signs = None if fmt.is_integer else steps.clone() if fmt.signed_zeros else steps + 0.0  # -0 + 0 is 0
    return codes_of(_nearest(steps, params, fmt), fmt, signs)


def dequantize(codes: Tensor, params: QParams, fmt: Format) -> Tensor:
    """The real values of codes, in the dtype of the scale."""
    return moved((values_of(codes, fmt, params.scale.dtype) - origin(params, fmt)) * params.scale, params, fmt)


@torch.no_grad()
def fake_quantize(blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
    """dequantize(quantize(x)), without codes in between: the values that execution in the format would see.

    They are equal for all finite x. Only here can a 0 of integers be negative, and only here is a nan still a nan. No gradient
    passes: see `quant.trainable`.
    """
    result = torch.empty_like(blocks, dtype=torch.promote_types(blocks.dtype, params.scale.dtype))
    for piece, own, place in _pieces(blocks, params, result):
        values = _nearest(_steps(piece, own, fmt, place), own, fmt)
        torch.mul(values if fmt.symmetric else values.sub_(origin(own, fmt)), own.scale, out=place)
        moved(place, own, fmt)
    return result


def _pieces(blocks: Tensor, params: QParams, result: Tensor) -> Iterator[tuple[Tensor, QParams, Tensor]]:
    """Blocks, their parameters and the place of their result, in pieces that stay in a processor's cache from step to step."""
    count = 1 if blocks.is_cuda else -(-blocks.numel() // IN_CACHE)
    if count < 2:
        yield blocks, params, result
        return
    axis = 0 if len(blocks) > 1 else blocks.dim() - 1

    def cut(values: Tensor) -> Sequence[Tensor]:
        shared = values.dim() < blocks.dim() or values.shape[axis] == 1
        return [values] * count if shared else values.chunk(count, axis)

    parts = zip(*(cut(values) for values in params if values is not None), strict=False)
    for piece, own, place in zip(blocks.chunk(count, axis), parts, result.chunk(count, axis), strict=False):
        yield piece, QParams(*own), place


def _nearest(steps: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Quotients x / scale rounded to numbers of the element, with the zero-point. In place."""
    # The bounds are numbers, because a clamp between tensors takes longer than all the rest.
    if fmt.symmetric:
        return nearest_(steps.clamp_(fmt.smallest, fmt.largest), fmt)
    before = fmt.shift == "before"
    rounded = nearest_(steps.add_(params.zero_point), fmt) if before else nearest_(steps, fmt).add_(origin(params, fmt))
    return rounded.clamp_(fmt.smallest, fmt.largest)


def _steps(blocks: Tensor, params: QParams, fmt: Format, place: Tensor | None = None) -> Tensor:
    """x / scale, computed in at least the scale's precision. In bfloat16 the quotient itself would be rounded first.

    Where there is a minimum, x is counted from it.
    """
    wide = blocks.to(torch.promote_types(blocks.dtype, params.scale.dtype))
    wide = wide - params.zero_point if fmt.has_minimum else wide
    by = params.scale if params.by is None else params.by
    return (torch.mul if fmt.multiplies else torch.div)(wide, by, out=place)
