"""Activations as the integer codes that products read, and integer layers that read them."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sqbench.execution import native
from sqbench.execution.accepts import CODED_INPUTS, CODED_WEIGHTS, ROWS, STATIC
from sqbench.execution.base import IntegerLayer
from sqbench.formats.codec import quantize, to_blocks
from sqbench.formats.params import QParams, block_range, qparams
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, Shared

OFFSET = 128  # stored = code + 128 on CPUs: their 8-bit products take one unsigned operand


class Codes(NamedTuple):
    """Codes of an activation in its shape, with their scale and zero-point.

    Codes are uint8 with `OFFSET` added, or int8 without. Parameters are 0-dim for a whole tensor and [rows, 1] per token. The
    zero-point is that of signed codes.
    """

    values: Tensor
    params: QParams


class CodeQuantizer(nn.Module):
    """Turns a float activation into the codes that an `ActivationQuantizer` rounds it to. Readers of one tensor share one."""

    def __init__(self, simulated: ActivationQuantizer, *, unsigned: bool = True) -> None:
        super().__init__()
        self.fmt = simulated.fmt
        self.axis = simulated.axis
        self.unsigned = unsigned
        self.static = None if simulated.static is None else simulated.static.map(lambda part: part.view(()))
        # Kernels want Python numbers. Reading a tensor's value at every call would cost more than a small product.
        self.scale, self.zero_point = (1.0, 0) if self.static is None else (float(self.static.scale), int(self.static.zero_point))
        self.one_pass = (ROWS if self.static is None else STATIC).refusal(self.fmt) is None
        self.shared = Shared(simulated.readers)

    def forward(self, x: Tensor) -> Codes:
        return self.shared(self._codes, x)

    def _codes(self, x: Tensor) -> Codes:
        kernels = self._kernels(x)
        if self.static is not None:
            known = self.scale, self.zero_point, self.fmt
            return Codes(self._rounded(x, self.static) if kernels is None else kernels.quantize_static(x, *known), self.static)
        if kernels is not None:
            values, scale, zero = kernels.quantize_rows(x.reshape(-1, x.shape[-1]), self.fmt)
            return Codes(values.view(x.shape), QParams(scale.unsqueeze(1), zero.unsqueeze(1)))
        blocks = to_blocks(x, self.fmt)
        params = qparams(*block_range(blocks, self.fmt), self.fmt)
        values = self._rounded(blocks, params).view(x.shape)
        whole = self.fmt.granularity == "tensor"
        return Codes(values, params.map(lambda part: part.view(())) if whole else params)

    def _kernels(self, x: Tensor) -> Any:
        """The module that rounds such a tensor in one pass over it. None if there is none."""
        if not self.one_pass:
            return None
        if self.unsigned:
            return native if native.takes(x) else None
        from sqbench.execution import triton_kernels  # Triton is not on every machine

        return triton_kernels

    def _rounded(self, blocks: Tensor, params: QParams) -> Tensor:
        codes = quantize(blocks, params, self.fmt)
        return codes.view(torch.uint8).bitwise_xor_(OFFSET) if self.unsigned else codes  # flipping the top bit adds 128

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # .to(device) moves the parameters along
        if self.static is not None:
            self.static = self.static.map(fn)
        return super()._apply(fn, recurse)


class CodedLayer(IntegerLayer):
    """A layer of 8-bit products. It multiplies weight codes, with a scale per output channel, by codes of its input.

    Attributes:
        activation: quantizes the input, unless the layer before has written the codes.
        scale: the scales of the weight, [out] float32.
        post: the name in `flow.FUNCTIONS` of the activation function applied to the output. "none" is no function.
        output: the next layer's quantizer, if this layer writes that layer's codes instead of floats.
    """

    weights = CODED_WEIGHTS
    inputs = CODED_INPUTS
    unsigned: ClassVar[bool] = True
    scale: Tensor
    output: CodeQuantizer | None

    def __init__(self, layers: list[QuantLayer]) -> None:
        super().__init__(layers)
        simulated = layers[0].activation
        assert isinstance(simulated, ActivationQuantizer)
        self.activation = CodeQuantizer(simulated, unsigned=self.unsigned)
        self.register_buffer("scale", torch.cat([_per_channel(layer) for layer in layers]), persistent=False)
        self.post = "none"
        self.__dict__["output"] = None

    @classmethod
    def takes(cls, layer: QuantLayer) -> bool:
        return super().takes(layer) and layer.activation is not None

    @property
    def is_static(self) -> bool:
        """Whether calibration fixed the ranges of the input."""
        return self.activation.static is not None

    def fuses(self, post: str) -> bool:
        """Whether the product can apply this function and then round to the codes of a layer with static ranges.

        The function may be "none".
        """
        return False

    def fuse(self, post: str, output: CodeQuantizer | None) -> None:
        """Apply a function to the output, and write the codes of another layer instead of floats."""
        self.post = post
        self.__dict__["output"] = output  # it is a submodule of the other layer, not of this one

    @abstractmethod
    def product(self, codes: Codes) -> Tensor:
        """The layer's output: floats, or the codes of `output`."""

    def run(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:  # the layer before has written the codes
            assert self.activation.static is not None
            codes = Codes(x, self.activation.static)
        else:
            codes = self.activation(x)
        result = self.product(codes)
        return result if self.output is not None else result.to(self.weight.dtype)


def rescale(product: Tensor, params: QParams, column_sums: Tensor, bias: Tensor | None, symmetric: bool) -> Tensor:
    """Return scale (product - zero_point column_sums) + bias, the step that is left when ranges are known at run time only.

    Args:
        product: sum over the inputs of codes times the dequantized weight, [..., out] float32. It is overwritten.
        column_sums: sum over the inputs of the dequantized weight, [out].
    """
    rows = product.view(-1, product.shape[-1])
    if not symmetric:
        rows = rows.sub_(params.zero_point * column_sums)
    rows = rows.mul_(params.scale) if bias is None else torch.addcmul(bias.to(rows.dtype), rows, params.scale)
    return rows.view(product.shape)


def _per_channel(layer: QuantLayer) -> Tensor:
    """A weight's scales [out], float32."""
    return layer.encoded.scale.float().flatten().expand(layer.shape[0]).contiguous()
