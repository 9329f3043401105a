"""The layout of gpt-oss: experts of a block stacked in MXFP4 (OCP Microscaling Formats 1.0).

An experts module `x` has `x.gate_up_proj_blocks`, bytes [experts, out, groups, 16] of two codes each, and `x.gate_up_proj_scales`,
exponents of two [experts, out, groups]; so has `down_proj`. Rows of gate and up take turns.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.stored import Layout, Read, StoredLayer
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.nibbles import of_nibbles

BLOCKS, SCALES = "_blocks", "_scales"
EVERY = slice(None)
# Matrix in the files -> layers that it holds, and their rows.
ROWS = {
    "gate_up_proj": {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)},
    "down_proj": {"down_proj": EVERY},
}


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`."""
    fmt = schemes()["mxfp4a16"].weights
    assert fmt is not None
    found = {}
    for stored in [name for name in shapes if name.endswith(BLOCKS)]:
        matrix = stored.removesuffix(BLOCKS)
        owner, _, leaf = matrix.rpartition(".")
        names = (stored, f"{matrix}{SCALES}")
        blocks, scales = shapes[stored], shapes.get(names[1])
        if leaf not in ROWS:
            raise UserError(f"{place}: {stored} is none of the matrices that mxfp4 stacks ({', '.join(ROWS)})")
        if len(blocks) != 4 or blocks[3] * 2 != fmt.group_size or scales != blocks[:3] or blocks[1] % len(ROWS[leaf]):
            raise UserError(f"{place}: {matrix} has blocks {list(blocks)} and scales {list(scales or ())}, which do not fit")
        for number in range(blocks[0]):
            for layer, rows in ROWS[leaf].items():
                read = partial(_encoded, fmt, names, number, rows)
                found[f"{owner}.{number}.{layer}"] = StoredLayer(fmt, None, names, read, _no_input)
    return found


def _encoded(fmt: Format, names: tuple[str, ...], number: int, rows: slice, read: Read) -> EncodedTensor:
    """The weight of one layer of one expert."""
    blocks, scales = (read(name)[number, rows] for name in names)
    scale = torch.exp2(scales.float() - 127).unsqueeze(-1)
    return EncodedTensor(of_nibbles(blocks).flatten(1), scale, torch.zeros_like(scale), fmt)


def _stacked(decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `Layout.weights`. transformers keeps these matrices transposed: [experts, in, out]."""
    experts = sorted({tuple(layer.rsplit(".", 2)[:2]) for layer in decoded}, key=lambda one: (one[0], int(one[1])))
    found = {}
    for owner in dict.fromkeys(owner for owner, _ in experts):
        numbers = [number for of, number in experts if of == owner]
        for matrix, parts in ROWS.items():
            each = [torch.stack([decoded[f"{owner}.{number}.{layer}"] for layer in parts], 1).flatten(0, 1) for number in numbers]
            found[f"{owner}.{matrix}"] = torch.stack(each).mT.contiguous()
    return found


def _no_input(read: Read) -> None:
    return None


LAYOUT = Layout("mxfp4", layers, _stacked)
