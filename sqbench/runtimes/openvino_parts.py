"""Layers of OpenVINO's graph whose outputs are split into parts: a product for each part.

Vision transformers compute queries, keys and values by one layer, and then order them by `reshape`, `permute` and `unbind`.
OpenVINO copies all outputs for that. The parts of a layer's own product need no copy, because attention reads them in their order.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sqbench.quant.access import kind_of
from sqbench.quant.layers import QuantLayer
from sqbench.runtimes.openvino_layers import integers, products_of, unpacked

Step = Callable[[Any, slice], Any]  # (what was computed of some rows, these rows) -> the next operation on it


def split_products(graph: Any, layers: Mapping[str, QuantLayer]) -> None:
    """Write a product for each part of the layers whose outputs are split. Every output is the same sum as before.

    What has another pattern than Reshape, Transpose, Split, Squeeze stays as it is.
    """
    products = products_of(graph)
    for path, layer in layers.items():
        kind = kind_of(layer.layer)
        if kind is not None and kind.folds and not kind.transposed and products[path].get_type_name() == "MatMul":
            _split(path, products[path], layer)
    graph.validate_nodes_and_infer_types()


def _split(path: str, product: Any, layer: QuantLayer) -> None:
    from openvino import opset13 as ops

    rows = layer.shape[0]
    steps, last = _elementwise(product, rows)
    if (found := _ordered(last, rows)) is None:
        return
    shape, order, ends = found
    size = rows // len(ends)
    for number, end in enumerate(ends):
        part = slice(number * size, (number + 1) * size)
        weight = unpacked(layer, [size, layer.shape[1]], part, by_inputs=False)
        weight.set_friendly_name(f"{path}.unpacked/{number}")
        value = ops.matmul(product.input_value(0), weight, False, True)
        value.set_friendly_name(f"{product.get_friendly_name()}/{number}")
        for name, step in steps:
            value = step(value, part)
            value.set_friendly_name(f"{name}/{number}")  # what is fused keeps one of the names, which tell the layer
        value = ops.transpose(ops.reshape(value, integers(shape), True), integers(order))
        for reader in end.output(0).get_target_inputs():
            reader.replace_source_output(value.output(0))


def _elementwise(product: Any, rows: int) -> tuple[list[tuple[str, Step]], Any]:
    """The multiplications and additions behind a product by their names, and the last of them. They are scales and biases."""
    steps: list[tuple[str, Step]] = []
    last = product
    while (following := _only_reader(last)) is not None and following.get_type_name() in ("Add", "Multiply"):
        (other,) = (source for source in following.input_values() if source.get_node() != last)
        if (step := _step(following.get_type_name().lower(), other, rows)) is None:
            break
        steps.append((following.get_friendly_name(), step))
        last = following
    return steps, last


def _step(name: str, other: Any, rows: int) -> Step | None:
    """The same operation on a part of the rows. None if it is not known which elements of `other` belong to a part."""
    from openvino import opset13 as ops

    apply, width = getattr(ops, name), other.get_partial_shape()[-1]
    if width.is_static and width.get_length() == 1:
        return lambda value, part: apply(value, other)
    constant = other.get_node()
    if constant.get_type_name() != "Constant" or width != rows:
        return None
    return lambda value, part: apply(value, ops.constant(constant.data[..., part].copy()))


def _ordered(last: Any, rows: int) -> tuple[list[int], list[int], list[Any]] | None:
    """How the parts are ordered: the shape of one, its order of axes, and the node that gives each. None for another pattern."""
    path = [_only_reader(last)]
    for _ in range(2):
        path.append(None if path[-1] is None else _only_reader(path[-1]))
    if [None if node is None else node.get_type_name() for node in path] != ["Reshape", "Transpose", "Split"]:
        return None
    reshape, _, split = path
    given = [node.input_value(1).get_node() for node in path if node is not None]
    if any(node.get_type_name() != "Constant" for node in given):
        return None
    shape, order, axis = (node.data.reshape(-1).tolist() for node in given)
    ends = [_only_reader(split, number) for number in range(split.get_output_size())]
    inner = order[axis[0]]  # the axis of the parts before the transposition
    squeezed = all(end is not None and end.get_type_name() == "Squeeze" for end in ends)
    within = reshape.get_output_partial_shape(0)[inner:]
    if not squeezed or not within.is_static or within[0].get_length() != len(ends) or _count(within) != rows:
        return None
    if any(length == 0 for length in shape[inner:]):  # 0 is the length of the same axis of what is reshaped
        return None
    axes = [at for at in order if at != inner]
    return shape[:inner] + shape[inner + 1 :], [at - (at > inner) for at in axes], ends


def _count(shape: Any) -> int:
    size = 1
    for length in shape:
        size *= length.get_length()
    return size


def _only_reader(node: Any, output: int = 0) -> Any:
    readers = list(node.output(output).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None
