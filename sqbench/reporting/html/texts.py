"""Texts of a point beside those of the float model. Points with eval=generation have two texts per prompt."""

from dataclasses import dataclass
from itertools import takewhile

from sqbench.records.record import Record
from sqbench.records.store import Store

SHOWN = 3  # pairs of a point


@dataclass(frozen=True)
class Pair:
    """Two continuations of one prompt.

    Attributes:
        window: number of the prompt.
        shared: their common beginning.
        floating, quantized: the rest of each.
    """

    window: int
    shared: str
    floating: str
    quantized: str


def texts(store: Store, record: Record) -> tuple[Pair, ...]:
    """The texts of a point that differ earliest. Empty for other evaluations, and if samples are not kept."""
    if record.identity["eval"].get("name") != "generation" or not record.finished:
        return ()
    table = store.samples(record.point_id, ["window", "text", "text_fp"])
    if table is None:
        return ()
    pairs = []
    for window, own, floating in zip(table["window"], table["text"], table["text_fp"], strict=True):
        shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, floating, strict=False)))
        pairs.append(Pair(int(window), shared, floating[len(shared) :], own[len(shared) :]))
    return tuple(sorted(pairs, key=lambda pair: (len(pair.shared), pair.window))[:SHOWN])
