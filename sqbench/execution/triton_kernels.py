"""Our GPU kernels, in Triton: rounding to 8-bit codes, products of codes, and dequantization of torch's packed 4-bit weights.

The number of rows alone decides how a product is cut into blocks. Nothing is tuned at run time, so a first call is as fast as the
next.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqbench.formats.format import Format

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: a float32 near it has no bits for a fraction, so a sum with it rounds half to even
FAR = tl.constexpr(1e6)  # steps beyond every code, and below 2^22
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
BAND = tl.constexpr(8)  # blocks of rows that are computed side by side, so that they find a weight in the cache
TILE = tl.constexpr(128)  # input channels that `torch._convert_weight_to_int4pack` stores together, for eight inner steps


class Cut(NamedTuple):
    """How a product is cut: rows, outputs and inputs of a block, its warps, and the blocks of inputs in flight at once."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


CUTS = {  # by their largest number of rows; the fastest of those tried on an H200, for 4096 x 4096 and 4096 x 14336 weights
    16: Cut(16, 64, 256, 4, 4),
    64: Cut(64, 64, 128, 4, 4),
    256: Cut(64, 128, 128, 4, 4),
    float("inf"): Cut(128, 128, 64, 8, 4),
}


# ---- Rounding ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _codes(x, scale, zero, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return clamp(round(x / scale) + zero), as `sqbench.formats.codec.quantize` computes it."""
    steps = tl.minimum(tl.maximum(tl.div_rn(x, scale), -FAR), FAR)
    return tl.minimum(tl.maximum((steps + ROUNDER) - ROUNDER + zero, LOW), HIGH).to(tl.int8)


@triton.jit
def _quantize_rows(  # type: ignore[no-untyped-def]
    x, codes, scales, zeros, width,
    LOW: tl.constexpr, HIGH: tl.constexpr, LEVELS: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    low, high = tl.minimum(tl.min(value, 0), 0.0), tl.maximum(tl.max(value, 0), 0.0)
    span = tl.maximum(-low, high) if SYMMETRIC else high - low
    scale = tl.div_rn(span, LEVELS)
    scale = tl.where(scale > TINY, scale, 1.0)
    zero = 0.0 if SYMMETRIC else LOW - ((tl.div_rn(low, scale) + ROUNDER) - ROUNDER)
    tl.store(codes + row * width + column, _codes(value, scale, zero, LOW, HIGH), mask=column < width)
    tl.store(scales + row, scale)
    tl.store(zeros + row, zero)


@triton.jit
def _quantize_static(  # type: ignore[no-untyped-def]
    x, codes, scale, zero, size, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < size, other=0.0).to(tl.float32)
    tl.store(codes + place, _codes(value, scale, zero, LOW, HIGH), mask=place < size)


def quantize_rows(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of every row in its own range, with scales and zero-points. The bits are those of `codec`, in one pass.

    Args:
        x: [M, K], float.
        fmt: a dynamic format per token, with float32 scales.

    Returns:
        Codes [M, K] int8, scales [M] float32, zero-points [M] float32.
    """
    rows, width = x.shape
    x = x.contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    scales, zeros = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _quantize_rows[(rows,)](
        x, codes, scales, zeros, width, fmt.code_min, fmt.code_max, float(fmt.levels), fmt.symmetric, block,
        num_warps=4 if block <= 4096 else 16,
    )  # fmt: skip
    return codes, scales, zeros


def quantize_static(x: Tensor, scale: float, zero_point: int, fmt: Format) -> Tensor:
    """Codes of `x` in one range for all values, int8 in the shape of `x`."""
    x = x.contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    size, block = x.numel(), 1024
    _quantize_static[(triton.cdiv(size, block),)](x, codes, scale, float(zero_point), size, fmt.code_min, fmt.code_max, block)
    return codes


# ---- int8 times int8 ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def _int8_linear(  # type: ignore[no-untyped-def]
    x, weight, x_scale, x_zero, scale, column_sums, bias, result, rows, outputs, inputs,
    PER_ROW: tl.constexpr, SYMMETRIC: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    program, down, across = tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(outputs, BLOCK_OUTPUTS)
    band, inside = program // (BAND * across) * BAND, program % (BAND * across)
    height = tl.minimum(down - band, BAND)
    row = (band + inside % height) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = inside // height * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    step = tl.arange(0, BLOCK_INPUTS)
    x_at = x + (row % rows).to(tl.int64)[:, None] * inputs + step[None, :]  # beyond the last row: the first again, not stored
    weight_at = weight + (output % outputs).to(tl.int64)[None, :] * inputs + step[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), dtype=tl.int32)
    for start in range(0, inputs, BLOCK_INPUTS):
        left = step < inputs - start
        codes = tl.load(x_at, mask=left[None, :], other=0)
        total = tl.dot(codes, tl.load(weight_at, mask=left[:, None], other=0), total, out_dtype=tl.int32)
        x_at += BLOCK_INPUTS
        weight_at += BLOCK_INPUTS
    in_rows, in_outputs = row < rows, output < outputs
    row_scale = tl.load(x_scale + row, mask=in_rows, other=0.0)[:, None] if PER_ROW else tl.load(x_scale)
    value = total.to(tl.float32)
    if not SYMMETRIC:
        zero = tl.load(x_zero + row, mask=in_rows, other=0.0)[:, None] if PER_ROW else tl.load(x_zero)
        value -= zero * tl.load(column_sums + output, mask=in_outputs, other=0).to(tl.float32)[None, :]
    value *= row_scale * tl.load(scale + output, mask=in_outputs, other=0.0)[None, :]
    if BIAS:
        value += tl.load(bias + output, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    at = result + row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(at, value.to(result.dtype.element_ty), mask=in_rows[:, None] & in_outputs[None, :])


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    symmetric: bool,
) -> Tensor:
    """Return x_scale scale (x - x_zero) W^T + bias. The product is exact in 32 bits.

    Args:
        x: codes [M, K] int8.
        weight: codes [N, K] int8.
        scale: the scales of the weight's rows, [N] float32.
        x_scale, x_zero: [M], or one number for all rows, float32.
        column_sums: the sum of the codes of each row of the weight, [N] int32.
        bias: [N].
        symmetric: whether all of `x_zero` is 0.

    Returns:
        [M, N] of `dtype`.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    result = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    cut = next(cut for most, cut in CUTS.items() if rows <= most)
    _int8_linear[(triton.cdiv(rows, cut.rows) * triton.cdiv(outputs, cut.outputs),)](
        x, weight, x_scale, x_zero, scale, column_sums, scale if bias is None else bias, result, rows, outputs, inputs,
        x_scale.numel() > 1, symmetric, bias is not None, cut.rows, cut.outputs, cut.inputs,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return result


# ---- Packed int4 -------------------------------------------------------------------------------------------------------------


@triton.jit
def _dequantize_int4(  # type: ignore[no-untyped-def]
    packed, pairs, result, outputs, inputs, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    inside, column = tl.arange(0, TILE)[None, :], tl.program_id(0) * TILE + tl.arange(0, TILE)[None, :]
    # A tile is 8 outputs by 128 inputs. It has 32 lanes with four words each, one word for every 32 inputs. Four lanes share an
    # output. Of 32 inputs, a lane has 0 1 8 9 16 17 24 25, counted from twice its place among the four. In this order, they are the
    # nibbles 0 4 1 5 2 6 3 7 of the word.
    lane, nibble = output % 8 * 4 + inside % 8 // 2, inside % 32 // 8 + inside % 2 * 4
    tile = output // 8 * (inputs // TILE) + tl.program_id(0)
    word = tl.load(packed + (tile * 32 + lane) * 4 + inside // 32, mask=output < outputs, other=0)
    code = ((word >> (nibble * 4)) & 15).to(tl.float32) - 8.0
    at = (column // GROUP * outputs + output) * 2
    scale = tl.load(pairs + at, mask=output < outputs, other=0.0).to(tl.float32)
    zero = tl.load(pairs + at + 1, mask=output < outputs, other=0.0).to(tl.float32)
    value = (code * scale + zero).to(result.dtype.element_ty)
    tl.store(result + output.to(tl.int64) * inputs + column, value, mask=output < outputs)


def dequantize_int4(packed: Tensor, group_size: int, pairs: Tensor) -> Tensor:
    """The weight [N, K] that `torch._weight_int4pack_mm` multiplies with, in the dtype of `pairs`.

    Args:
        packed: from `torch._convert_weight_to_int4pack` with eight inner steps, [N / 8, K / 128, 32, 4] int32.
        pairs: [K / group_size, N, 2], the scales, and the offsets that are added after scaling.
    """
    outputs, inputs = 8 * packed.shape[0], 128 * packed.shape[1]
    result = torch.empty(outputs, inputs, dtype=pairs.dtype, device=packed.device)
    block = 32
    _dequantize_int4[(inputs // 128, triton.cdiv(outputs, block))](packed, pairs, result, outputs, inputs, group_size, block)
    return result
