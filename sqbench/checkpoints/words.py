"""Codes in words of 32 bits: a dense stream of bits, the first code lowest. The package compressed-tensors packs and unpacks it."""

import torch
from torch import Tensor


def unpacked(words: Tensor, bits: int, shape: tuple[int, int], axis: int) -> Tensor:
    """Signed codes int8 of a matrix: the unsigned ones of a stream along an axis, less 2^(bits - 1)."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    if axis == 0:  # the package fails at a single word in this direction
        return unpacked(words.t(), bits, (shape[1], shape[0]), 1).t().contiguous()
    codes: Tensor = unpack_from_int32(words.clone(memory_format=torch.contiguous_format), bits, torch.Size(shape), packed_dim=1)
    return codes


def packed(codes: Tensor, bits: int, axis: int) -> Tensor:
    """The words int32 of signed codes int8."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    words: Tensor = pack_to_int32(codes, bits, packed_dim=axis)
    return words
