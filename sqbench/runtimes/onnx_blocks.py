"""Weights of 2 to 8 bits in the blocks of ONNX Runtime's MatMulNBits: products with them, and rows of them.

A code of more than 4 bits is two digits of 4 bits, and each digit has a product of its own. MatMulNBits of 8 bits has no fast
kernel for float inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sqbench.formats.codec import EncodedTensor
from sqbench.formats.nibbles import nibbles

BLOCKS = (128, 64, 32, 16)  # columns that share a scale, where the format has one scale for a row; their scales are then equal
DIGIT = 16


class Packed(nn.Module):
    """An encoded matrix [rows, columns] with a zero-point for each block. The value of code c is (c - zero_point) * scale.

    Attributes:
        columns, size: columns of the matrix, and of a block.
        digits: digits of a code, 1 or 2. The upper one comes first.
        scale: float32 [rows, blocks].
        codes0, codes1: uint8 [rows, blocks, size / 2], a digit of each code. Two share a byte, the first in its lower half.
        zero_point0, zero_point1: uint8 [rows, blocks / 2], those of zero-points alike.
    """

    scale: Tensor

    def __init__(self, encoded: EncodedTensor) -> None:
        super().__init__()
        fmt = encoded.format
        rows, self.columns = encoded.codes.shape
        self.size = fmt.group_size or next((size for size in BLOCKS if self.columns % size == 0), BLOCKS[-1])
        count = -(-self.columns // self.size)
        self.digits = 1 if fmt.bits <= 4 else 2
        offset = DIGIT**self.digits // 2
        codes = pad(encoded.codes.int() + offset, (0, count * self.size - self.columns)).view(rows, count, self.size)
        zero_point = (encoded.by_row(encoded.zero_point).int() + offset).expand(rows, count)
        self.register_buffer("scale", encoded.by_row(encoded.scale).expand(rows, count).contiguous())
        for digit in range(self.digits):
            for name, values in (("codes", codes), ("zero_point", zero_point)):
                of_digit = values % DIGIT if self._is_last(digit) else values // DIGIT
                self.register_buffer(f"{name}{digit}", _halves(of_digit))

    def _is_last(self, digit: int) -> bool:
        return digit == self.digits - 1

    def times(self, x: Tensor, digit: int) -> Tensor:
        """x times the weight of a digit."""
        return x if self._is_last(digit) else x * DIGIT


def _halves(values: Tensor) -> Tensor:
    """Numbers of 4 bits [..., n] as bytes [..., n / 2]."""
    return nibbles(pad(values, (0, values.shape[-1] % 2)).to(torch.uint8))


def _numbers(halves: Tensor) -> Tensor:
    """What `_halves` was made from, as floats."""
    values = halves.float()
    upper = (values / DIGIT).floor()
    return torch.stack([values - DIGIT * upper, upper], dim=-1).flatten(-2)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, sizes: dict[str, int]) -> Tensor:
        return x.new_zeros(*x.shape[:-1], len(codes))

    @staticmethod
    def symbolic(g: Any, x: Any, codes: Any, scale: Any, zero_point: Any, sizes: dict[str, int]) -> Any:
        product = g.op("com.microsoft::MatMulNBits", x, codes, scale, zero_point, **sizes)
        return like(product, x, sizes["N_i"], torch.float32)


class Blocked(nn.Module):
    """MatMulNBits of float inputs and each digit of the codes."""

    def __init__(self, layer: nn.Module, packed: Packed) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed
        blocks = {"bits_i": 4, "block_size_i": packed.size, "accuracy_level_i": 1}  # inputs stay in float32
        self.sizes = {"K_i": packed.columns, "N_i": len(packed.scale), **blocks}

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (self._product(x, digit) for digit in range(self.packed.digits))
        return with_bias(sum(others, first), self.layer)

    def _product(self, x: Tensor, digit: int) -> Any:
        codes, zero_point = (getattr(self.packed, f"{name}{digit}") for name in ("codes", "zero_point"))
        return _Product.apply(self.packed.times(x, digit), codes, self.packed.scale, zero_point, self.sizes)


class Rows(nn.Module):
    """A token embedding: the codes of rows are gathered, and then unpacked."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        scale = self.packed.scale[ids]
        codes, zero_point = (self._gathered(name, ids) for name in ("codes", "zero_point"))
        values = (codes - zero_point[..., : scale.shape[-1]].unsqueeze(-1)) * scale.unsqueeze(-1)
        return values.flatten(-2)[..., : self.packed.columns]

    def _gathered(self, name: str, ids: Tensor) -> Any:
        packed = self.packed
        digits = (_numbers(getattr(packed, f"{name}{digit}")[ids]) for digit in range(packed.digits))
        first, *others = (packed.times(one, digit) for digit, one in enumerate(digits))
        return sum(others, first)


def with_bias(x: Any, layer: nn.Module) -> Tensor:
    """A product and the bias of a layer."""
    outputs: Tensor = x if layer.bias is None else x + layer.bias
    return outputs


def like(result: Any, x: Any, width: int, dtype: torch.dtype) -> Any:
    """A result in a graph with the shape of x, but another width and dtype."""
    known = x.type().varyingSizes()  # None for what is dynamic
    return result.setType(x.type().with_dtype(dtype).with_sizes([*known[:-1], width])) if known else result
