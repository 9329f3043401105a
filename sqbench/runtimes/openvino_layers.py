"""Quantized layers in a graph of OpenVINO: quantizers that its converter knows, and codes that its operations unpack."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sqbench.formats.nibbles import nibbles
from sqbench.quant.access import is_linear
from sqbench.quant.layers import ActivationQuantizer, Encoded, QuantLayer, Shared
from sqbench.quant.tables import EncodedTable
from sqbench.runtimes.tokens import Tokens

EVERY = slice(None)
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")


def written(layer: QuantLayer, quantizers: dict[int, nn.Module]) -> nn.Module:
    """The layer as torch computes it in float. `quantizers` holds those of inputs that several layers read."""
    inputs, floats = layer.activation, layer.simulated()
    if not isinstance(inputs, ActivationQuantizer) or inputs.fmt.granularity == "group":  # an option of the graph rounds groups
        return Written(floats, None)
    if inputs.static is not None:
        return Written(floats, quantizers.setdefault(id(inputs), Static(inputs)))
    return WrittenTokens(floats, quantizers.setdefault(id(inputs), OpenVinoTokens(inputs)))


class Static(nn.Module):
    """Rounds an input with a static range by torch's own fake quantization, which converters know."""

    def __init__(self, simulated: ActivationQuantizer) -> None:
        super().__init__()
        assert simulated.static is not None
        self.scale, self.zero_point = float(simulated.static.scale), int(simulated.static.zero_point)
        self.fmt = simulated.fmt
        self.shared = Shared(simulated.readers)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self._rounded, x)

    def _rounded(self, x: Tensor) -> Tensor:
        low, high = -self.fmt.code_max - 1, self.fmt.code_max
        if self.fmt.code_min > low:  # OpenVINO makes 256 steps of 255 where it stores a tensor as u8
            x = x.clamp(min=self.fmt.code_min * self.scale)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, low, high)


class OpenVinoTokens(Tokens):
    """See `Tokens`. Quotients are rounded in a range that is the same for all inputs.

    OpenVINO makes integer products of constant ranges alone.
    """

    def rounded(self, steps: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(steps, 1.0, 0, self.fmt.code_min, self.fmt.code_max)


class Written(nn.Module):
    """A float layer behind the quantizer of its input."""

    def __init__(self, layer: nn.Module, rounded: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.rounded = layer, rounded

    @property
    def weight(self) -> Any:
        """The weight of the layer. Models read its dtype."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Any:
        return self.layer(x if self.rounded is None else self.rounded(x))


class WrittenTokens(Written):
    """A float layer behind `Tokens`. Outputs are multiplied by the scales of tokens before the bias is added."""

    def __init__(self, layer: nn.Module, rounded: nn.Module) -> None:
        bare = copy.copy(layer)
        bare._parameters = {**layer._parameters, "bias": None}
        super().__init__(bare, rounded)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Any:
        assert self.rounded is not None
        codes, scale = self.rounded(x)
        outputs = self.layer(codes) * scale
        return outputs if self.bias is None else outputs + self.bias


def products_of(graph: Any, kinds: Collection[str] = PRODUCTS) -> dict[str, Any]:
    """Path of a layer -> its product in a graph that was traced. Or the operations of other kinds."""
    return {
        op.get_friendly_name().partition(".layer/")[0].removeprefix("__module."): op
        for op in graph.get_ops()
        if op.get_type_name() in kinds
    }


def store_codes(graph: Any, parts: Mapping[str, Encoded]) -> None:
    """Replace the float weights in a graph by codes that are unpacked. A tied matrix is unpacked once."""
    products, lookups = products_of(graph), products_of(graph, ("Gather",))
    known: dict[tuple[int, bool], Any] = {}
    for path, part in parts.items():
        reader, port = (lookups[path], 0) if isinstance(part, EncodedTable) else (products[path], 1)
        by_inputs = reader.get_type_name() == "MatMul" and not reader.get_attributes()["transpose_b"]
        place = part.codes.data_ptr(), by_inputs
        if place not in known:
            known[place] = unpacked(part, list(reader.input_value(port).get_shape()), by_inputs=by_inputs)
            known[place].set_friendly_name(f"{path}.unpacked")
        reader.input(port).replace_source_output(known[place].output(0))


def unpacked(layer: Encoded, shape: list[int], part: slice = EVERY, *, by_inputs: bool) -> Any:
    """The operations that turn the codes of a layer or a table into its weight, in the shape that is read.

    Args:
        part: the rows to take. `shape` is then that of the part.
        by_inputs: whether the first axis of this shape is that of inputs, and not that of outputs.
    """
    from openvino import Type
    from openvino import opset13 as ops

    encoded = layer.encoded
    fmt = encoded.format
    codes, scale, zero_point = (x[part] for x in (encoded.codes, *map(encoded.by_row, (encoded.scale, encoded.zero_point))))
    rows, columns = codes.shape
    blocked: tuple[int, ...] = (rows, columns)
    if isinstance(layer, QuantLayer) and not is_linear(layer.layer):  # a convolution
        blocked = (rows, *layer.size[1:])
    if fmt.group_size is not None:
        blocked = (rows, columns // fmt.group_size, fmt.group_size)
    per_block = (*blocked[:2], 1) if fmt.group_size is not None else (rows, *(1 for _ in blocked[1:]))
    dtype = getattr(Type, f"{'i' if fmt.symmetric else 'u'}{4 if fmt.bits <= 4 else 8}")
    shift = 0 if fmt.symmetric else 2 ** (3 if fmt.bits <= 4 else 7)

    def constant(codes: Tensor, size: tuple[int, ...]) -> Any:
        return ops.convert(_constant((codes.int() + shift).reshape(size), dtype), Type.f32)

    values = constant(codes, blocked)
    if not fmt.symmetric:
        values = ops.subtract(values, constant(zero_point, per_block))
    values = ops.multiply(values, ops.constant(scale.reshape(per_block).numpy()))
    if by_inputs:
        return ops.transpose(ops.reshape(values, integers([rows, columns]), False), integers([1, 0]))
    return values if list(blocked) == shape else ops.reshape(values, integers(shape), False)


def integers(values: list[int]) -> Any:
    """A constant that gives a shape, an order of axes or a place."""
    import numpy as np
    from openvino import opset13 as ops

    return ops.constant(np.array(values, dtype=np.int64))


def _constant(codes: Tensor, dtype: Any) -> Any:
    """A constant of integers. Two of 4 bits share a byte, the first in its lower half."""
    import numpy as np
    from openvino import Tensor as OpenVinoTensor
    from openvino import Type
    from openvino.op import Constant

    if dtype not in (Type.i4, Type.u4):
        return Constant(codes.numpy().astype(np.int8 if dtype == Type.i8 else np.uint8))
    flat = (codes & 15).to(torch.uint8).flatten()
    tensor = OpenVinoTensor(dtype, list(codes.shape))
    tensor.data[:] = nibbles(pad(flat, (0, len(flat) % 2))).numpy().reshape(tensor.data.shape)
    return Constant(tensor)
