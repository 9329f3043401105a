"""Quantized layers in the operations of ONNX. torch's exporter writes what each `symbolic` says.

What a `forward` here returns has the shape of the result. A traced graph holds no numbers of it.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.quant.access import kind_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, Shared
from sqbench.runtimes.tokens import Tokens

BLOCK = 32  # inputs that share a scale in MatMulNBits, where the format has one for a row; their scales are then equal
LARGEST = torch.finfo(torch.float32).max
OFFSET = 128  # stored = code + 128: ONNX Runtime is fastest with unsigned inputs


def written(layer: QuantLayer, quantizers: dict[int, nn.Module]) -> nn.Module:
    """The layer as ONNX. `quantizers` holds those of inputs that several layers read."""
    inputs = layer.activation
    if inputs is None:
        return Unpacked(layer, None) if _convolves(layer) else Blocked(layer)
    assert isinstance(inputs, ActivationQuantizer)
    rounded = quantizers.setdefault(id(inputs), OnnxTokens(inputs) if inputs.static is None else Static(inputs))
    return Unpacked(layer, rounded) if isinstance(rounded, Static) else Integer(layer, rounded)


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
        return _with_bias(x @ weight, self.layer)


def _with_bias(x: Tensor, layer: nn.Module) -> Tensor:
    return x if layer.bias is None else x + layer.bias  # type: ignore[operator]


class _IntegerProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, offset: Tensor, width: int) -> Tensor:
        return x.new_zeros(*x.shape[:-1], width, dtype=torch.int32)

    @staticmethod
    def symbolic(g: Any, x: Any, codes: Any, offset: Any, width: int) -> Any:
        return _like(g.op("MatMulInteger", x, codes, offset), x, width, torch.int32)


def _like(result: Any, x: Any, width: int, dtype: torch.dtype) -> Any:
    """A result with the shape of x, but another width and dtype."""
    known = x.type().varyingSizes()  # None for what is dynamic
    return result.setType(x.type().with_dtype(dtype).with_sizes([*known[:-1], width])) if known else result


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
        return _with_bias(sums.float() * scale * self.scale, self.layer)


class _BlockedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, sizes: dict[str, int]) -> Tensor:
        return x.new_zeros(*x.shape[:-1], len(codes))

    @staticmethod
    def symbolic(g: Any, x: Any, codes: Any, scale: Any, zero_point: Any, sizes: dict[str, int]) -> Any:
        product = g.op("com.microsoft::MatMulNBits", x, codes, scale, zero_point, **sizes)
        return _like(product, x, sizes["N_i"], torch.float32)


class Blocked(nn.Module):
    """MatMulNBits: weights of 4 or 8 bits in blocks of columns, and float inputs."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        encoded, self.layer = layer.encoded, layer.layer
        fmt = encoded.format
        self.bits, size = 4 if fmt.bits <= 4 else 8, fmt.group_size or BLOCK
        rows, columns = encoded.codes.shape
        count, shift = -(-columns // size), 2 ** (self.bits - 1)
        inputs = {"accuracy_level_i": 1}  # they stay in float32
        self.sizes = {"K_i": columns, "N_i": rows, "bits_i": self.bits, "block_size_i": size, **inputs}
        codes = nn.functional.pad(encoded.codes.int() + shift, (0, count * size - columns)).view(rows, count, size)
        zero_point = (encoded.by_row(encoded.zero_point).int() + shift).expand(rows, count)
        self.register_buffer("codes", self._packed(codes))
        self.register_buffer("zero_point", self._packed(zero_point).flatten())
        self.register_buffer("scale", encoded.by_row(encoded.scale).expand(rows, count).flatten().contiguous())

    def _packed(self, codes: Tensor) -> Tensor:
        """Unsigned codes as bytes. Two of 4 bits share a byte, the first in its lower half."""
        if self.bits == 8:
            return codes.to(torch.uint8)
        even = nn.functional.pad(codes, (0, codes.shape[-1] % 2))
        return (even[..., 0::2] | even[..., 1::2] << 4).to(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        product: Any = _BlockedProduct.apply(x, self.codes, self.scale, self.zero_point, self.sizes)
        return _with_bias(product, self.layer)
