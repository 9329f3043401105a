"""A tensor as codes and the numbers that give them meaning. Only `encode` and `decode` know how a format does this.

`round_trip` (sqbench.quant.affine) is `decode(encode(x))` in one step. The numbers are equal.
"""

from dataclasses import dataclass

from torch import Tensor

from sqbench.quant.affine import QParams, block_range, dequantize, qparams, quantize, to_blocks
from sqbench.quant.formats import Format


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


def encode(x: Tensor, fmt: Format, limits: tuple[Tensor, Tensor] | None = None) -> EncodedTensor:
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
