"""Codes of 4 bits, two in a byte, the first one low."""

import torch
from torch import Tensor


def of_nibbles(bytes_: Tensor) -> Tensor:
    """Codes uint8 [..., 2 n] of bytes [..., n]."""
    return torch.stack([bytes_ & 15, bytes_ >> 4], -1).flatten(-2)


def nibbles(codes: Tensor) -> Tensor:
    """Bytes [..., n] of codes uint8 below 16, [..., 2 n]."""
    pairs = codes.unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4
