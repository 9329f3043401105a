"""Quantized layers in the operations of ONNX. torch's exporter writes what each `symbolic` says.

What a `forward` here returns has the shape of the result. A traced graph holds no numbers of it.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.quant.access import kind_of
from sqbench.quant.layers import ActivationQuantizer, Encoded, QuantLayer, Shared
from sqbench.quant.tables import EncodedTable
from sqbench.runtimes.onnx_blocks import Blocked, Packed, Rows, like, with_bias
from sqbench.runtimes.tokens import Tokens

LARGEST = torch.finfo(torch.float32).max
OFFSET = 128  # stored = code + 128: ONNX Runtime is fastest with unsigned inputs


def written(part: Encoded, shared: dict[int, nn.Module]) -> nn.Module:
    """A quantized layer or an encoded table as ONNX. `shared` holds what several of them read: quantizers, and codes."""
    if isinstance(part, EncodedTable):
        return Rows(_packed(part, shared))
    assert isinstance(part, QuantLayer)
    return _layer(part, shared)


def _layer(layer: QuantLayer, shared: dict[int, nn.Module]) -> nn.Module:
    inputs = layer.activation
    if inputs is None:
        return Unpacked(layer, None) if _convolves(layer) else Blocked(layer.layer, _packed(layer, shared))
    assert isinstance(inputs, ActivationQuantizer)
    rounded = shared.setdefault(id(inputs), OnnxTokens(inputs) if inputs.static is None else Static(inputs))
    return Unpacked(layer, rounded) if isinstance(rounded, Static) else Integer(layer, rounded)


def _packed(part: Encoded, shared: dict[int, nn.Module]) -> Packed:
    """The codes of a weight. A tied matrix is packed once."""
    place = part.codes.data_ptr()
    packed = shared.get(place)
    if packed is None:
        packed = shared[place] = Packed(part.encoded)
    assert isinstance(packed, Packed)
    return packed


def _convolves(layer: QuantLayer) -> bool:
    kind = kind_of(layer.layer)
    return kind is not None and not kind.folds


# ---- Inputs ------------------------------------------------------------------------------------------------------------------


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        codes = g.op("QuantizeLinear", x, scale, zero_point)
        return g.op("DequantizeLinear", codes, scale, zero_point).setType(x.type())


class Static(nn.Module):
    """QuantizeLinear and DequantizeLinear of an input with a static range."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, simulated: ActivationQuantizer, *, as_float: bool = False) -> None:
        """`as_float` keeps what follows in float. ONNX Runtime computes a softmax of codes by a table, with other results."""
        super().__init__()
        assert simulated.static is not None
        self.shared = Shared(simulated.readers)
        self.register_buffer("scale", simulated.static.scale.reshape(()).float())
        self.least = simulated.fmt.smallest if simulated.fmt.symmetric else None  # uint8 has one code more
        self.as_float = as_float
        self.register_buffer("zero_point", (simulated.static.zero_point.reshape(()) + OFFSET).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self._rounded, x)

    def _rounded(self, x: Tensor) -> Any:
        inside = x if self.least is None else x.clamp(min=self.least * float(self.scale))
        rounded: Any = _Round.apply(inside, self.scale, self.zero_point)
        return rounded.clamp(max=LARGEST) if self.as_float else rounded


class OnnxTokens(Tokens):
    """See `Tokens`. Codes are uint8 with `OFFSET`."""

    def rounded(self, steps: Tensor) -> Tensor:
        return (steps.round().clamp(self.fmt.smallest, self.fmt.largest) + OFFSET).to(torch.uint8)


# ---- Products ----------------------------------------------------------------------------------------------------------------


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
        return codes.float()

    @staticmethod
    def symbolic(g: Any, codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        unpacked = g.op("DequantizeLinear", codes, scale, zero_point, axis_i=axis)
        return unpacked.setType(codes.type().with_dtype(torch.float32))


class Unpacked(nn.Module):
    """A layer whose weight is unpacked by DequantizeLinear. ONNX Runtime makes one integer product of this and a rounded input."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: QuantLayer, rounded: nn.Module | None) -> None:
        super().__init__()
        encoded, self.rounded, self.convolves = layer.encoded, rounded, _convolves(layer)
        self.layer = copy.copy(layer.layer)
        if self.convolves:  # its weight is an attribute that every forward pass sets
            self.layer._parameters = {name: value for name, value in layer.layer._parameters.items() if name != "weight"}
        self.size, group = layer.size, encoded.format.group_size
        codes = encoded.codes.view(self.size if group is None else (-1, group)) if self.convolves else encoded.codes.t()
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", encoded.by_row(encoded.scale).flatten())
        self.register_buffer("zero_point", encoded.by_row(encoded.zero_point).flatten().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.rounded is None else self.rounded(x)
        weight: Any = _Unpack.apply(self.codes, self.scale, self.zero_point, 0 if self.convolves else 1)
        if self.convolves:
            self.layer.weight = weight.view(self.size) if weight.shape != self.size else weight
            return self.layer(x)
        return with_bias(x @ weight, self.layer)


class _IntegerProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, offset: Tensor, width: int) -> Tensor:
        return x.new_zeros(*x.shape[:-1], width, dtype=torch.int32)

    @staticmethod
    def symbolic(g: Any, x: Any, codes: Any, offset: Any, width: int) -> Any:
        return like(g.op("MatMulInteger", x, codes, offset), x, width, torch.int32)


class Integer(nn.Module):
    """MatMulInteger of codes, and the scales of tokens and rows."""

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, layer: QuantLayer, rounded: nn.Module) -> None:
        super().__init__()
        self.rounded, self.layer = rounded, layer.layer
        self.register_buffer("codes", layer.encoded.codes.t().contiguous())
        self.register_buffer("scale", layer.encoded.by_row(layer.encoded.scale).flatten())
        self.register_buffer("offset", torch.tensor(OFFSET, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self.rounded(x)
        sums: Any = _IntegerProduct.apply(codes, self.codes, self.offset, len(self.scale))
        return with_bias(sums.float() * scale * self.scale, self.layer)
