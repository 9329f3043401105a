"""The bytes of GGUF's blocks as codes with their scales, and back. All numbers of a block stand beside each other.

A block of 32 weights is its scale (float16, or the exponent of a power of two), a minimum (float16) where the type has one, the
fifth bits of 5-bit codes as one little-endian word, and the codes: bytes, or pairs of nibbles, of which the low ones come first.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.scales import of_e8m0, to_e8m0
from sqbench.formats.blocks import BLOCKS
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale

SIZE = 32  # values that share a scale
HALF = Scale("float16")

# Types whose codes and scales a format of ours holds.
TYPES: Mapping[str, Format] = {
    "Q4_0": Format(4, True, "group", SIZE, convention="signed", scale=HALF),
    "Q4_1": Format(4, False, "group", SIZE, scale=HALF, zero_point="minimum"),
    "Q5_0": Format(5, True, "group", SIZE, convention="signed", scale=HALF),
    "Q5_1": Format(5, False, "group", SIZE, scale=HALF, zero_point="minimum"),
    "Q8_0": Format(8, True, "group", SIZE, scale=HALF),
    "MXFP4": Format(4, True, "group", SIZE, scale=Scale("e8m0", "floor"), element="e2m1"),
}


def format_of(kind: str) -> Format | None:
    """The format of a type of blocks. None if the package gguf cannot decode it."""
    if (block := BLOCKS.get(kind.lower())) is None:
        return TYPES.get(kind)
    return Format(block.bits, True, "group", block.values, scale=HALF, element=kind.lower())


def storage(fmt: Format) -> dict[str, Any]:
    """The fields of a format that say how it is stored, by their keys. Rules of rounding are not among them."""
    return {
        "element": fmt.element,
        "bits": fmt.bits,
        "symmetric": fmt.symmetric,
        "granularity": fmt.granularity,
        "group_size": fmt.group_size,
        "contiguous": fmt.contiguous,
        "zero_point": fmt.zero_point,
        "scale.dtype": fmt.scale.dtype,
        "scale.second": fmt.scale.second,
    }


def kind_of(fmt: Format) -> str | None:
    """The type of blocks in which a format is stored, whatever its rules of rounding are. None if there is none."""
    if not fmt.has_grid:
        return fmt.element.upper()
    return next((kind for kind, one in TYPES.items() if storage(one) == storage(fmt)), None)


def encoded(rows: Tensor, kind: str) -> EncodedTensor:
    """A weight as it is stored.

    Args:
        rows: its bytes, uint8 [out, bytes].
        kind: a type that `format_of` knows.
    """
    fmt = format_of(kind)
    assert fmt is not None
    if not fmt.has_grid:
        empty = torch.empty(0)
        return EncodedTensor(rows, empty, empty, fmt)
    parts = _parts(fmt)
    scale, minimum, high, low = rows.unflatten(1, (-1, sum(parts))).split(parts, -1)
    codes = low.view(torch.int8) if fmt.bits == 8 else torch.cat([low & 15, low >> 4], -1)
    if fmt.bits == 5:
        codes = codes | _bits(high) << 4
    if fmt.is_integer and fmt.bits < 8:
        codes = codes.to(torch.int8) - 2 ** (fmt.bits - 1)
    scales = _scales(scale, fmt)
    zero_point = _scales(minimum, fmt) if fmt.has_minimum else torch.zeros_like(scales)
    return EncodedTensor(codes.flatten(1), scales, zero_point, fmt)


def stored(weight: EncodedTensor) -> Tensor:
    """The bytes of a weight, uint8 [out, bytes]. Its format is one of `TYPES`, apart from the rules of rounding."""
    fmt = weight.format
    if not fmt.has_grid:
        return weight.codes
    codes = weight.codes.unflatten(1, (-1, SIZE))
    if fmt.is_integer and fmt.bits < 8:
        codes = codes + 2 ** (fmt.bits - 1)
    codes = codes.view(torch.uint8)
    parts = [_of_scales(weight.scale, fmt)]
    parts += [_of_scales(weight.zero_point, fmt)] * fmt.has_minimum
    if fmt.bits == 5:
        parts.append(_of_bits(codes >> 4))
    low, high = (half & 15 for half in codes.chunk(2, -1))
    parts.append(codes if fmt.bits == 8 else low | high << 4)
    return torch.cat(parts, -1).flatten(1)


def _parts(fmt: Format) -> list[int]:
    """Bytes of the parts of a block: its scale, its minimum, the fifth bits, the codes."""
    scale = fmt.scale.bits // 8
    return [scale, scale * fmt.has_minimum, 4 * (fmt.bits == 5), SIZE if fmt.bits == 8 else SIZE // 2]


def _scales(stored_: Tensor, fmt: Format) -> Tensor:
    """Scales or minima float32 [out, groups, 1] of their bytes."""
    if fmt.scale.dtype == "e8m0":
        return of_e8m0(stored_)
    return stored_.contiguous().view(torch.float16).float()


def _of_scales(values: Tensor, fmt: Format) -> Tensor:
    """The bytes of scales or minima float32 [out, groups, 1]."""
    if fmt.scale.dtype == "e8m0":
        return to_e8m0(values)
    return values.half().view(torch.uint8)


def _bits(words: Tensor) -> Tensor:
    """The bits of bytes [..., 4], the lowest first: [..., 32]."""
    return (words.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _of_bits(bits: Tensor) -> Tensor:
    """The bytes of bits [..., 32]."""
    return (bits.unflatten(-1, (4, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
