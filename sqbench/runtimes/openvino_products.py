"""Products of two rounded tensors in OpenVINO's graph, such as both of attention: they multiply codes.

OpenVINO multiplies integers where both zero-points are 0. With zero-points a and b,

    sum_i (x_i - a) (y_i - b) = sum_i x_i y_i - b sum_i (x_i - a) - a sum_i y_i,

so these products are written as one of codes, and sums of codes (Jacob et al., 2018, eq. 7).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sqbench.runtimes.openvino_layers import Static, integers
from sqbench.runtimes.runtime import MARK

MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Broadcast")  # their outputs are their first inputs, in another order


def multiply_codes(graph: Any, products: Mapping[tuple[str, str], str], quantizers: Mapping[str, Static]) -> None:
    """Name the products of two points in a graph that was traced, and write them as products of codes.

    Args:
        products: paths of the quantizers of both operands -> name.
        quantizers: path -> quantizer.
    """
    for product in graph.get_ops():
        if product.get_type_name() != "MatMul":
            continue
        (first, x), (second, y) = (_rounded(source, quantizers) for source in product.input_values())
        if (name := products.get((first, second))) is not None:
            _in_codes(product, [x, y], [quantizers[first], quantizers[second]])
            _mark(product, name)
    graph.validate_nodes_and_infer_types()


def _rounded(source: Any, paths: Collection[str]) -> tuple[str, Any]:
    """The quantizer whose outputs a product alone reads: its path and its FakeQuantize. No path if something else is between.

    OpenVINO may have moved the FakeQuantize before a transposition, which then has its name.
    """
    path = ""
    while source.get_node().get_type_name() in (*MOVES, "FakeQuantize") and len(source.get_target_inputs()) == 1:
        node = source.get_node()
        named = node.get_friendly_name().partition("/aten::")[0].removeprefix("__module.")
        path = named if named in paths else path
        if node.get_type_name() == "FakeQuantize":
            return path, node
        source = node.input_value(0)
    return "", None


def _mark(product: Any, name: str) -> None:
    """Name a product, and the operations on its outputs. What is fused keeps one of the names."""
    node = product
    while node is not None and node.get_type_name() in ("MatMul", "Subtract", "Multiply"):
        node.set_friendly_name(f"{name}{MARK}{node.get_friendly_name()}")
        readers = list(node.output(0).get_target_inputs())
        node = readers[0].get_node() if len(readers) == 1 else None


def _in_codes(product: Any, rounded: list[Any], quantizers: list[Static]) -> None:
    """Multiply codes, and apply zero-points and scales to the outputs. A product without zero-points is one of codes already."""
    from openvino import opset13 as ops

    first, second = (one.zero_point for one in quantizers)
    unsigned = first == -128  # u8 without a zero-point, which only the first operand may be
    first = 0 if unsigned else first
    if not (first or second):
        return
    x, y = product.input_values()
    transposed = product.get_attributes()
    axes = (-2 if transposed["transpose_a"] else -1), (-1 if transposed["transpose_b"] else -2)
    length = x.get_partial_shape()[axes[0]]
    if first and second and length.is_dynamic:
        return  # the product of both zero-points comes once for each number of a sum
    for node, low in zip(rounded, (0 if unsigned else -128, -128), strict=True):
        for number, end in ((3, low), (4, low + 255)):
            node.input(number).replace_source_output(ops.constant(np.float32(end)).output(0))
    readers = list(product.output(0).get_target_inputs())
    value = product
    if second:
        sums = ops.unsqueeze(ops.reduce_sum(x, integers([axes[0]]), False), integers([-1]))
        if first:
            sums = ops.subtract(sums, np.float32(first * length.get_length()))
        value = ops.subtract(value, ops.multiply(sums, np.float32(second)))
    if first:
        sums = ops.unsqueeze(ops.reduce_sum(y, integers([axes[1]]), False), integers([-2]))
        value = ops.subtract(value, ops.multiply(sums, np.float32(first)))
    value = ops.multiply(value, np.float32(quantizers[0].scale * quantizers[1].scale))
    for reader in readers:
        reader.replace_source_output(value.output(0))
