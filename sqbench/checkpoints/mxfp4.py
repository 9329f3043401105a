"""The layout of gpt-oss: experts of a block stacked in MXFP4 (OCP Microscaling Formats 1.0).

An experts module `x` has `x.gate_up_proj_blocks`, bytes [experts, out, groups, 16] of two codes each, and `x.gate_up_proj_scales`,
exponents of two [experts, out, groups]; so has `down_proj`. Rows of gate and up take turns.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.scales import of_e8m0
from sqbench.checkpoints.stored import Layout, Read, StoredLayer
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.nibbles import of_nibbles
from sqbench.models import expert_layout as experts

BLOCKS, SCALES = "_blocks", "_scales"
EXPERTS = experts.Layout(has_gate=True, has_bias=True, is_transposed=True, is_concatenated=False)
# Matrix in the files -> layers that it holds. Their rows take turns.
HELD = {EXPERTS.first: ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`."""
    fmt = schemes()["mxfp4a16"].weights
    assert fmt is not None
    found = {}
    sizes: dict[str, list[int]] = {}
    for stored in [name for name in shapes if name.endswith(BLOCKS)]:
        matrix = stored.removesuffix(BLOCKS)
        owner, _, leaf = matrix.rpartition(".")
        names = (stored, f"{matrix}{SCALES}")
        blocks, scales = shapes[stored], shapes.get(names[1])
        if leaf not in HELD:
            raise UserError(f"{place}: {stored} is none of the matrices that mxfp4 stacks ({', '.join(HELD)})")
        if len(blocks) != 4 or blocks[3] * 2 != fmt.group_size or scales != blocks[:3] or blocks[1] % len(HELD[leaf]):
            raise UserError(f"{place}: {matrix} has blocks {list(blocks)} and scales {list(scales or ())}, which do not fit")
        sizes.setdefault(owner, []).append(blocks[0])
        for number in range(blocks[0]):
            for turn, layer in enumerate(HELD[leaf]):
                read = partial(_encoded, fmt, names, number, slice(turn, None, len(HELD[leaf])))
                found[f"{owner}.{number}.{layer}"] = StoredLayer(fmt, None, names, read)
    for owner, counts in sizes.items():
        if len(counts) < len(HELD) or len(set(counts)) > 1:
            raise UserError(f"{place}: {owner} has {counts} experts in its matrices, and must have one number in {', '.join(HELD)}")
    return found


def _encoded(fmt: Format, names: tuple[str, ...], number: int, rows: slice, read: Read) -> EncodedTensor:
    """The weight of one layer of one expert."""
    blocks, scales = (read(name)[number, rows] for name in names)
    for name, part in zip(names, (blocks, scales), strict=True):
        if part.dtype != torch.uint8:
            raise UserError(f"{name}: has the dtype {part.dtype}, and must have uint8")
    scale = of_e8m0(scales).unsqueeze(-1)
    return EncodedTensor(of_nibbles(blocks).flatten(1), scale, torch.zeros_like(scale), fmt)


def _stacked(decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `Layout.weights`."""
    of: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, weight in decoded.items():
        owner, number, layer = name.rsplit(".", 2)
        of.setdefault(owner, {}).setdefault(int(number), {})[layer] = weight
    stacks = {owner: EXPERTS.stacked([each[number] for number in sorted(each)]) for owner, each in of.items()}
    return {f"{owner}.{matrix}": stack for owner, parts in stacks.items() for matrix, stack in parts.items()}


LAYOUT = Layout("mxfp4", layers, _stacked)
