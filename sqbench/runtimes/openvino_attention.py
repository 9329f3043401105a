"""Attention with a constant mask in OpenVINO's graph: keys that the mask removes for all of some queries are not computed.

A causal mask removes half of all scores. OpenVINO computes them, and the softmax makes zeros of them. Here, the queries are taken
in `PIECES`, and each piece reads the keys up to its last one. Heads that share keys are read as more queries of one head, so that
keys and values are not repeated in memory.
"""

from typing import Any, NamedTuple

PIECES, LEAST = 8, 32  # pieces of queries, and how many queries one has at least
REMOVED = -1e30  # what a mask adds to a score that the softmax turns into 0


class Piece(NamedTuple):
    """Queries `first` to `last`, and the keys that one of them reads."""

    first: int
    last: int
    start: int
    stop: int


def skip_masked(graph: Any) -> None:
    """Compute the scores of a graph that its masks keep. Shapes must be static, and masks constant; all others stay.

    Scores that are left out were zeros after the softmax. So all outputs are the same, up to the order of sums.
    """
    known: dict[tuple[str, int], Any] = {}
    for attention in graph.get_ops():
        if attention.get_type_name() == "ScaledDotProductAttention" and attention.get_input_size() > 3:
            source = attention.input_value(3)
            key = (source.get_node().get_friendly_name(), source.get_index())
            if key not in known:
                known[key] = _constant(graph, source)
            if (mask := known[key]) is not None:
                _in_pieces(attention, mask)
    graph.validate_nodes_and_infer_types()


def _constant(graph: Any, source: Any) -> Any:
    """The mask [queries, keys] that is added to scores. None if it depends on inputs, or differs between heads or examples."""
    import numpy as np
    from openvino import Model, opset13
    from openvino.passes import ConstantFolding, Manager

    shape = source.get_partial_shape()
    if shape.is_dynamic or len(shape) != 4 or list(shape.to_shape()[:2]) != [1, 1] or not source.get_element_type().is_real():
        return None
    part = Model([opset13.result(source)], graph.get_parameters()).clone()
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(part)
    node = part.get_results()[0].input_value(0).get_node()
    return np.array(node.data[0, 0]) if node.get_type_name() == "Constant" else None


def pieces_of(kept: Any) -> list[Piece]:
    """Pieces of queries for a mask [queries, keys] that is true where a score is kept. One piece if nothing is saved."""
    count, keys = kept.shape
    size = max(LEAST, -(-count // PIECES))
    found = []
    for first in range(0, count, size):
        last = min(count, first + size)
        (read,) = kept[first:last].any(0).nonzero()
        found.append(Piece(first, last, int(read[0]), int(read[-1]) + 1))
    computed = sum((piece.last - piece.first) * (piece.stop - piece.start) for piece in found)
    return found if computed < 0.9 * count * keys else [Piece(0, count, 0, keys)]


def _in_pieces(attention: Any, mask: Any) -> None:
    import numpy as np
    from openvino import opset13 as ops

    query, key, value = (attention.input_value(number) for number in range(3))
    kept = mask > REMOVED
    if query.get_partial_shape().is_dynamic or not kept.any(1).all():  # a query that reads nothing has a mean of all values
        return
    examples, heads, _, width = query.get_shape()
    shared = _before_repetition(key), _before_repetition(value)
    key, value = shared if None not in shared else (key, value)
    groups = key.get_shape()[1]
    parts = []
    for piece in pieces_of(kept):
        count = piece.last - piece.first
        own = ops.reshape(_slice(query, piece.first, piece.last), _integers(examples, groups, heads // groups * count, width), False)
        added = np.tile(mask[piece.first : piece.last, piece.start : piece.stop], (heads // groups, 1))
        read = _slice(key, piece.start, piece.stop), _slice(value, piece.start, piece.stop)
        scale = attention.input_values()[4:]
        result = ops.scaled_dot_product_attention(own, *read, ops.constant(added[None, None]), *scale)
        result = ops.reshape(result, _integers(examples, heads, count, -1), False)
        parts.append(ops.transpose(result, _integers(0, 2, 1, 3)))  # parts of one example then follow each other in memory
    together = ops.transpose(ops.concat(parts, 1), _integers(0, 2, 1, 3))
    together.set_friendly_name(attention.get_friendly_name())
    for reader in attention.output(0).get_target_inputs():
        reader.replace_source_output(together.output(0))


def _before_repetition(source: Any) -> Any:
    """What was repeated for heads that share it [examples, groups, keys, width]. None if nothing was."""
    reshape = source.get_node()
    broadcast = reshape.input_value(0).get_node() if reshape.get_type_name() == "Reshape" else reshape
    if broadcast.get_type_name() != "Broadcast" or broadcast.input_value(0).get_node().get_type_name() != "Unsqueeze":
        return None
    given = broadcast.input_value(0).get_node().input_value(0)
    examples, groups, keys, width = given.get_shape()
    repeated = [examples, groups, source.get_shape()[1] // groups, keys, width]
    return given if list(broadcast.output(0).get_shape()) == repeated else None


def _slice(source: Any, start: int, stop: int) -> Any:
    from openvino import opset13 as ops

    if (start, stop) == (0, source.get_shape()[2]):
        return source
    return ops.slice(source, *(_integers(number) for number in (start, stop, 1, 2)))


def _integers(*values: int) -> Any:
    import numpy as np
    from openvino import opset13 as ops

    return ops.constant(np.array(values, dtype=np.int64))
