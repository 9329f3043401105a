"""Attention with a mask in OpenVINO's graph: keys that the mask removes for all of some queries are not read.

A causal mask removes half of all scores. OpenVINO computes them, and the softmax makes zeros of them. Here the queries are taken
in pieces, and each piece reads the keys up to its last query. Heads that share keys become more queries of one head, so keys and
values are not repeated in memory.
"""

from typing import Any, NamedTuple

import numpy as np

from sqbench.runtimes.openvino_layers import integers

PIECES, LEAST = 4, 128  # pieces at most, because OpenVINO compiles each, and queries of a piece at least
REMOVED = -1e30  # the softmax makes 0 of a score to which a mask adds less


class Piece(NamedTuple):
    """Queries `first` to `last`, and the keys `start` to `stop` that they read."""

    first: int
    last: int
    start: int
    stop: int


def skip_masked(graph: Any) -> None:
    """Leave out keys that a mask removes for all queries of a piece. Their values were multiplied by zeros.

    Only attention with static shapes changes, and masks that are the OR of what removes tokens of any text and of padding. A query
    that padding leaves without keys had the mean of all values. It has that of fewer, and nothing reads it.
    """
    found: dict[str, list[Piece]] = {}
    cut: dict[Any, list[Any]] = {}  # layers share the parts of a mask
    for attention in graph.get_ops():
        if attention.get_type_name() != "ScaledDotProductAttention" or attention.get_input_size() < 4:
            continue
        if any(source.get_partial_shape().is_dynamic for source in attention.input_values()):
            continue
        mask = attention.input_value(3)
        name = f"{mask.get_node().get_friendly_name()}:{mask.get_index()}"
        if name not in found:
            removed = _removed(graph, mask)
            found[name] = [] if removed is None else pieces_of(~removed)
        if len(pieces := found[name]) < 2:
            continue
        key, value, times = _unrepeated(attention)
        if (name, times) not in cut:
            cut[name, times] = [_added(mask, piece, times) for piece in pieces]
        _replace(attention, key, value, list(zip(pieces, cut[name, times], strict=True)))
    graph.validate_nodes_and_infer_types()


def pieces_of(kept: Any) -> list[Piece]:
    """Pieces of queries for a mask [queries, keys] that is true where a score is kept. One piece if nothing is gained.

    A query without keys has the mean of all values. It stays so: there is one piece then.
    """
    count, keys = kept.shape
    size = max(LEAST, -(-count // PIECES))
    found = []
    for first in range(0, count if kept.any(1).all() else 0, size):
        last = min(count, first + size)
        (read,) = kept[first:last].any(0).nonzero()
        found.append(Piece(first, last, int(read[0]), int(read[-1]) + 1))
    computed = sum((piece.last - piece.first) * (piece.stop - piece.start) for piece in found)
    return found if 0 < computed < 0.9 * count * keys else [Piece(0, count, 0, keys)]


def _removed(graph: Any, mask: Any) -> Any:
    """The scores [queries, keys] that a mask removes for every input. None if it has another pattern than those of our functions.

    A mask is Unsqueeze(Multiply(Convert(removed), REMOVED or less)), or this is folded.
    """
    shape = list(mask.get_shape())
    if len(shape) != 4 or shape[1] != 1:
        return None
    if (folded := _folded(graph, mask)) is not None:
        return (folded < REMOVED).all((0, 1))
    node, least = mask.get_node(), 0.0
    while node.get_type_name() in ("Unsqueeze", "Multiply", "Convert"):
        if node.get_type_name() == "Multiply":
            factor = _folded(graph, node.input_value(1))
            least = 0.0 if factor is None else float(factor.max())
        node = node.input_value(0).get_node()
    if node.get_type_name() not in ("LogicalOr", "BitwiseOr") or least > REMOVED:
        return None
    removed = np.zeros(shape[2:], dtype=bool)
    for source in node.input_values():
        if (values := _folded(graph, source)) is not None:
            removed |= values.astype(bool).reshape(-1, *values.shape[-2:]).all(0)
    return removed


def _folded(graph: Any, source: Any) -> Any:
    """The value of a graph's node. None if it depends on inputs."""
    from openvino import Model
    from openvino import opset13 as ops
    from openvino.passes import ConstantFolding, Manager

    part = Model([ops.result(source)], graph.get_parameters()).clone()
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(part)
    node = part.get_results()[0].input_value(0).get_node()
    return node.data.copy() if node.get_type_name() == "Constant" else None


def _added(mask: Any, piece: Piece, times: int) -> Any:
    """The mask of a piece [examples, 1, times * queries, keys]."""
    from openvino import opset13 as ops

    own = _cut(mask, piece.first, piece.last)
    own = ops.slice(own, *(integers([number]) for number in (piece.start, piece.stop, 1, 3)))
    return own if times == 1 else ops.concat([own] * times, 2)


def _unrepeated(attention: Any) -> tuple[Any, Any, int]:
    """Keys and values before they are repeated for heads that share them, and how often they are: 1 for all others."""
    _, key, value, *_ = attention.input_values()
    before = [_before_repetition(source) for source in (key, value)]
    if None in before or before[0].get_shape()[1] != before[1].get_shape()[1]:
        return key, value, 1
    return *before, key.get_shape()[1] // before[0].get_shape()[1]


def _before_repetition(source: Any) -> Any:
    """What Unsqueeze, Broadcast and Reshape repeat for each head, [examples, heads, keys, width]. None for another pattern."""
    nodes = [source.get_node()]
    for _ in range(2):
        nodes.append(nodes[-1].input_value(0).get_node() if nodes[-1].get_input_size() else nodes[-1])
    if [node.get_type_name() for node in nodes] != ["Reshape", "Broadcast", "Unsqueeze"]:
        return None
    given = nodes[-1].input_value(0)
    examples, heads, keys, width = given.get_shape()
    repeated = [examples, heads, source.get_shape()[1] // heads, keys, width]
    return given if list(nodes[1].get_output_shape(0)) == repeated else None


def _replace(attention: Any, key: Any, value: Any, pieces: list[tuple[Piece, Any]]) -> None:
    """Read keys and values piece by piece. With fewer heads than queries have, heads that share keys follow each other."""
    from openvino import opset13 as ops

    query, scale = attention.input_value(0), attention.input_values()[4:]
    examples, heads, _, width = query.get_shape()
    groups = key.get_shape()[1]
    results = []
    for piece, added in pieces:
        count = piece.last - piece.first
        own = _shaped(_cut(query, piece.first, piece.last), [examples, groups, heads // groups * count, width])
        read = [_cut(source, piece.start, piece.stop) for source in (key, value)]
        result = ops.scaled_dot_product_attention(own, *read, added, *scale)
        # In this order of axes, pieces of one example follow each other in memory.
        results.append(_swapped(_shaped(result, [examples, heads, count, -1])))
    together = _swapped(ops.concat(results, 1))
    together.set_friendly_name(attention.get_friendly_name())
    for reader in attention.output(0).get_target_inputs():
        reader.replace_source_output(together.output(0))


def _cut(source: Any, start: int, stop: int) -> Any:
    from openvino import opset13 as ops

    return ops.slice(source, *(integers([number]) for number in (start, stop, 1, 2)))


def _shaped(source: Any, shape: list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.reshape(source, integers(shape), False)


def _swapped(source: Any) -> Any:
    from openvino import opset13 as ops

    return ops.transpose(source, integers([0, 2, 1, 3]))
