"""Scales as files store them."""

from dataclasses import replace

import torch
from torch import Tensor

from sqbench.formats.format import Format


def of_e8m0(exponents: Tensor) -> Tensor:
    """Powers of two, float32, of their exponents as bytes (OCP Microscaling Formats 1.0: the exponent plus 127)."""
    return torch.exp2(exponents.float() - 127)


def to_e8m0(powers: Tensor) -> Tensor:
    """The inverse of `of_e8m0`."""
    return (powers.frexp().exponent + 126).to(torch.uint8)  # 2^k is 0.5 times 2^(k + 1)


def stored_as(fmt: Format, scale: Tensor) -> Format:
    """The format whose scales have the dtype of a stored one, if that is a half precision."""
    if scale.dtype not in (torch.float16, torch.bfloat16):
        return fmt
    return replace(fmt, scale=replace(fmt.scale, dtype=str(scale.dtype).removeprefix("torch.")))
