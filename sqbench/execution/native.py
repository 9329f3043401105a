"""Our own CPU kernels, for work that torch's kernels do wrongly or slowly.

They compute exact 8-bit products without VNNI, weight-only products in float32, and quantization in one pass.

Tensors are contiguous and on the CPU. Codes of activations have `OFFSET` added, which makes them unsigned. The arithmetic is in
`kernels/*.c`. Nothing here falls back to torch, so callers ask `unavailable` first.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqbench.execution.compiler import library, unavailable
from sqbench.formats.format import Format
from sqbench.formats.nibbles import nibbles
from sqbench.formats.scale import FLOAT32

OFFSET = 128
PANEL = 16  # as in kernels/common.h
POSTS = ("none", "relu", "gelu", "gelu_tanh", "silu")  # in the order of kernels/functions.h

_GRAIN = 1 << 15  # values per thread; with fewer, the first thread ends before a second one starts
_PRODUCTS = 1 << 17


def takes(x: Tensor) -> bool:
    """Whether the quantizers here can read a tensor: it is float32, contiguous and on the CPU, and kernels are available."""
    return x.dtype == torch.float32 and x.is_cpu and x.is_contiguous() and unavailable() is None


# ---- int8 times int8 ---------------------------------------------------------------------------------------------------------


class Requantization(NamedTuple):
    """How a product y becomes codes: clamp(round(y / scale) + zero_point, low, high).

    Zero-point and bounds have `OFFSET` added.
    """

    scale: float
    zero_point: int
    low: int
    high: int


def pack_int8(codes: Tensor) -> Tensor:
    """Weight codes [N, K] (int8) in the order in which `int8_linear` reads them. N is rounded up to 16, K to 2."""
    assert codes.dtype == torch.int8
    count, depth = codes.shape
    whole = pad(codes, (0, depth % 2, 0, -count % PANEL))
    return whole.view(-1, PANEL, whole.shape[1] // 2, 2).transpose(1, 2).contiguous()


def int8_linear(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    column_sums: Tensor,
    bias: Tensor | None = None,
    post: str = "none",
    out: Requantization | None = None,
) -> Tensor:
    """Return post(x_scale scale (x - x_zero) W^T + bias). The product is exact in 32 bits.

    Args:
        x: stored codes [M, K] uint8.
        packed: W [N, K] as `pack_int8` packs it.
        scale: the scales of W's rows, [N] float32.
        x_scale, x_zero: [M], or [1] for all rows, float32. The zero-point is that of stored codes (`OFFSET` added).
        column_sums: the sum of the codes of each row of W, [N] int32.
        bias: [N] float32.
        post: one of `POSTS`.
        out: how to write codes instead of floats.

    Returns:
        [M, N] float32, or uint8 with `out`.
    """
    (rows, depth), columns = x.shape, out_features
    assert x.dtype == torch.uint8
    assert packed.dtype == torch.int8
    assert packed.shape == (-(-columns // PANEL), (depth + 1) // 2, PANEL, 2)
    assert scale.shape == column_sums.shape == (columns,)
    assert column_sums.dtype == torch.int32
    assert x_scale.shape == x_zero.shape
    assert x_scale.numel() in (1, rows)
    assert bias is None or (bias.shape == (columns,) and bias.dtype == torch.float32)
    assert scale.dtype == x_scale.dtype == x_zero.dtype == torch.float32
    _check(x, packed, scale, x_scale, x_zero, column_sums, bias)
    result = torch.empty(rows, columns, dtype=torch.float32 if out is None else torch.uint8)
    if result.numel():
        library().int8_linear(
            x.data_ptr(), packed.data_ptr(), scale.data_ptr(), x_scale.data_ptr(), x_zero.data_ptr(), x_scale.numel() > 1,
            column_sums.data_ptr(), _pointer(bias), result.data_ptr(), rows, columns, depth, POSTS.index(post),
            out is not None, *(out or (1.0, 0, 0, 0)), _threads(rows * columns * depth, _PRODUCTS),
        )  # fmt: skip
    return result


# ---- Float times int4 or int8 ------------------------------------------------------------------------------------------------


def refuses(in_features: int, groups: int) -> str | None:
    """The reason why a weight with this many groups along its input axis has no weight-only kernel. None if it has one."""
    size = in_features / groups
    return f"weight-only kernels take groups of a multiple of 8 inputs, not {size:g}" if size % 8 else None


def pack_weight(codes: Tensor, bits: int) -> Tensor:
    """Weight codes [N, K] as `weight_only_linear` reads them. N is rounded up to 16.

    The codes are int8. They have at most `bits` bits, which is 4 or 8.
    """
    assert codes.dtype == torch.int8
    assert bits in (4, 8)
    count, depth = codes.shape
    assert depth % 8 == 0
    panels = pad(codes, (0, 0, 0, -count % PANEL)).view(-1, PANEL, depth // 8, 8)
    if bits == 8:
        stored = panels.view(torch.uint8).bitwise_xor(OFFSET).view(-1, PANEL, depth // 4, 4)
    else:
        assert -8 <= int(codes.amin()) <= int(codes.amax()) <= 7
        stored = nibbles(panels.add(8).view(torch.uint8))
    return stored.transpose(1, 2).contiguous()


def weight_only_linear(x: Tensor, packed: Tensor, bits: int, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias in float32, with W = (codes - zero) scale.

    For few rows, it is as fast as memory delivers the codes. For many rows, `dequantize` and a float product are faster
    (`native_layers.FEW_ROWS`).

    Args:
        x: [M, K] float32.
        packed: the codes of W [N, K] with `bits` bits, as `pack_weight` packs them.
        scale, zero: [N, G] for groups of K / G inputs, float32 and int16. A rounded scale can push an 8-bit zero-point beyond
            8 bits. Both are read fastest if stored by columns (`scale.t().contiguous().t()`).
        bias: [N] float32.

    Returns:
        [M, N] float32.
    """
    (rows, depth), (columns, groups) = x.shape, scale.shape
    _check_weight(packed, bits, scale, zero, depth)
    assert x.dtype == torch.float32
    assert bias is None or (bias.shape == (columns,) and bias.dtype == torch.float32)
    _check(x, bias)
    result = torch.empty(rows, columns)
    if rows:
        scale, zero = _by_columns(scale), _by_columns(zero)
        library().weight_only_linear(
            x.data_ptr(), packed.data_ptr(), scale.data_ptr(), zero.data_ptr(), _pointer(bias), result.data_ptr(),
            rows, columns, depth, groups, bits, _threads(rows * columns * depth, _PRODUCTS),
        )  # fmt: skip
    return result


def dequantize(packed: Tensor, bits: int, scale: Tensor, zero: Tensor, out_features: int, in_features: int) -> Tensor:
    """Return (codes - zero) scale, [out, in] float32, of a weight packed by `pack_weight`. Scale and zero are [out, G]."""
    _check_weight(packed, bits, scale, zero, in_features)
    columns, groups = scale.shape
    assert columns == out_features
    result = torch.empty(columns, in_features)
    scale, zero = _by_columns(scale), _by_columns(zero)
    library().dequantize(
        packed.data_ptr(), scale.data_ptr(), zero.data_ptr(), result.data_ptr(),
        columns, in_features, groups, bits, _threads(result.numel(), _GRAIN),
    )  # fmt: skip
    return result


def _check_weight(packed: Tensor, bits: int, scale: Tensor, zero: Tensor, depth: int) -> None:
    columns, groups = scale.shape
    assert bits in (4, 8)
    assert refuses(depth, groups) is None
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-columns // PANEL), depth * bits // 32, PANEL, 4)
    assert zero.shape == scale.shape
    assert scale.dtype == torch.float32
    assert zero.dtype == torch.int16
    assert scale.is_cpu
    assert zero.is_cpu
    _check(packed)


def _by_columns(values: Tensor) -> Tensor:
    """Values [N, G] with neighbouring rows side by side in memory."""
    return values if values.stride() == (1, len(values)) else values.t().contiguous().t()


# ---- Quantization of activations ---------------------------------------------------------------------------------------------


def quantize_rows(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize every row in its own range. The bits are those of `codec`, and x is read once.

    Args:
        x: [M, K] float32.
        fmt: a format with scales in float32.

    Returns:
        Stored codes [M, K] uint8 (`OFFSET` added), scale [M], and zero-point [M] of codes without `OFFSET`. The code of a nan is
        undefined.
    """
    scale, zero = torch.empty(len(x)), torch.empty(len(x))
    return _quantize_rows(x, fmt, torch.empty_like(x, dtype=torch.uint8), scale, zero), scale, zero


def fake_quantize_rows(x: Tensor, fmt: Format) -> Tensor:
    """Quantize and dequantize every row, as `codec.fake_quantize` does. That includes rows with nan or infinity."""
    return _quantize_rows(x, fmt, torch.empty_like(x), None, None)


def _quantize_rows(x: Tensor, fmt: Format, out: Tensor, scale: Tensor | None, zero: Tensor | None) -> Tensor:
    assert fmt.scale == FLOAT32
    assert x.dtype == torch.float32
    _check(x)
    if out.numel():
        library().quantize_rows(
            x.data_ptr(), out.data_ptr(), _pointer(scale), _pointer(zero), *x.shape, fmt.symmetric, out.dtype != torch.uint8,
            fmt.levels, fmt.code_min + OFFSET, fmt.code_max + OFFSET, _threads(x.numel(), _GRAIN),
        )  # fmt: skip
    return out


def quantize_static(x: Tensor, scale: float, zero: float, fmt: Format) -> Tensor:
    """Stored codes (uint8, `OFFSET` added) of x (float32, any shape). The zero-point is that of codes without `OFFSET`."""
    return _quantize_static(x, scale, zero, fmt, torch.empty_like(x, dtype=torch.uint8))


def fake_quantize_static(x: Tensor, scale: float, zero: float, fmt: Format) -> Tensor:
    """Quantize and dequantize in a static range, as `codec.fake_quantize` does."""
    return _quantize_static(x, scale, zero, fmt, torch.empty_like(x))


def _quantize_static(x: Tensor, scale: float, zero: float, fmt: Format, out: Tensor) -> Tensor:
    assert x.dtype == torch.float32
    _check(x)
    library().quantize_static(
        x.data_ptr(), out.data_ptr(), scale, zero, x.numel(), out.dtype != torch.uint8,
        fmt.code_min + OFFSET, fmt.code_max + OFFSET, _threads(x.numel(), _GRAIN),
    )  # fmt: skip
    return out


def _threads(work: int, grain: int) -> int:
    return max(1, min(torch.get_num_threads(), work // grain))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or (tensor.is_contiguous() and tensor.is_cpu)
