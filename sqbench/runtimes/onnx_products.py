"""Names for products of two rounded tensors in a graph of ONNX, such as both of attention. ONNX Runtime keeps them."""

from collections.abc import Mapping
from typing import Any

from sqbench.runtimes.runtime import MARK

MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Expand")  # their outputs are their first inputs, in another order


def name_products(content: bytes, products: Mapping[tuple[str, str], str]) -> bytes:
    """The content of a file whose products of two points have their names.

    Args:
        products: paths of the quantizers of both operands -> name.
    """
    import onnx

    model = onnx.load_from_string(content)
    written_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "MatMul":
            first, second = (_quantizer(written_by.get(name), written_by) for name in node.input)
            if (name := products.get((first, second))) is not None:
                node.name = f"{name}{MARK}{node.name}"
    return bytes(model.SerializeToString())


def _quantizer(node: Any, written_by: Mapping[str, Any]) -> str:
    """The path of the quantizer whose outputs a product reads. Empty if something else is between."""
    while node is not None and node.op_type in MOVES:
        node = written_by.get(node.input[0])
    return node.input[1].removesuffix(".scale") if node is not None and node.op_type == "DequantizeLinear" else ""
