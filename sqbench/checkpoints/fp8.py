"""The layout `fp8` of transformers and vLLM: weights in E4M3.

A layer `x` has `x.weight` and either `x.weight_scale_inv` (a scale for each block of its matrix, as DeepSeek-V3 and Qwen3 have) or
`x.weight_scale` (one scale, as AutoFP8 writes) with `x.input_scale`. The weight is multiplied by either.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from sqbench.checkpoints.scales import stored_as
from sqbench.checkpoints.stored import Layout, Read, StoredInput, StoredLayer
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import QParams

BLOCKS, WHOLE = "weight_scale_inv", "weight_scale"


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`."""
    if (kind := config.get("fmt") or "e4m3") != "e4m3":
        raise UserError(f"{place}: its quantization_config has fmt={kind}, and only e4m3 is read")
    if (dtype := config.get("scale_fmt") or "float") not in ("float32", "float"):
        raise UserError(f"{place}: its quantization_config has scale_fmt={dtype}, which sqbench does not read")
    weight, activation, scale = _formats(config, place)
    found = {}
    for name in [key.rpartition(".")[0] for key in shapes if key.endswith((f".{BLOCKS}", f".{WHOLE}"))]:
        parts = ("weight", scale) + (() if activation.dynamic else ("input_scale",))
        names = tuple(f"{name}.{part}" for part in parts)
        if lost := [part for part in names if part not in shapes]:
            raise UserError(f"{place}: {name} is quantized, and {lost[0]} is in no file")
        _check_shapes(weight, shapes[names[0]], shapes[names[1]], f"{place}: {name}")
        read = partial(_encoded, weight, names)
        found[name] = StoredLayer(weight, activation, names, read, partial(_input, activation, names))
    return found


def _formats(config: Mapping[str, Any], place: str) -> tuple[Format, Format, str]:
    """The formats of weights and inputs, and the last part of the names of scales.

    Raises:
        UserError: runtimes round inputs of this kind by different rules, or it is not known.
    """
    blocks, inputs = config.get("weight_block_size"), config.get("activation_scheme", "dynamic")
    if blocks is not None and inputs == "dynamic":
        rows, columns = _sizes(blocks, place)
        weight = Format(8, granularity="block", group_size=columns, block_rows=rows, element="e4m3")
        return weight, Format(8, granularity="group", group_size=columns, dynamic=True, element="e4m3"), BLOCKS
    if blocks is None and inputs == "static":
        return Format(8, granularity="tensor", element="e4m3"), Format(8, granularity="tensor", element="e4m3"), WHOLE
    raise UserError(
        f"{place}: its quantization_config has weight_block_size={blocks} and activation_scheme={inputs}; runtimes round such"
        " inputs by different rules. sqbench reads blocks with dynamic inputs, and whole matrices with static inputs"
    )


def _sizes(blocks: Any, place: str) -> tuple[int, int]:
    """Rows and columns of blocks."""
    if isinstance(blocks, list) and len(blocks) == 2 and all(isinstance(size, int) and size > 0 for size in blocks):
        return blocks[0], blocks[1]
    raise UserError(f"{place}: its quantization_config has weight_block_size={blocks}, which must be rows and columns")


def _check_shapes(fmt: Format, weight: tuple[int, ...], scale: tuple[int, ...], place: str) -> None:
    """Raise UserError if scales do not fit a weight [out, in]."""
    if len(weight) != 2:
        raise UserError(f"{place} has a weight {list(weight)}, which is no matrix")
    fmt.check_width(place, weight[1], "weight_block_size")
    needed = torch.Size() if fmt.group_size is None else (-(-weight[0] // (fmt.block_rows or 1)), weight[1] // fmt.group_size)
    if scale != tuple(needed) and not (fmt.group_size is None and scale == (1,)):
        raise UserError(f"{place} has scales {list(scale)}, and {fmt} of a weight {list(weight)} needs {list(needed)}")


def _encoded(fmt: Format, names: tuple[str, ...], read: Read) -> EncodedTensor:
    weight, stored = read(names[0]), read(names[1])
    if weight.dtype != torch.float8_e4m3fn:
        raise UserError(f"{names[0]}: has the dtype {weight.dtype}, and must have float8_e4m3fn")
    scale = stored.float().reshape(1, 1) if fmt.group_size is None else stored.float().unsqueeze(-1)
    return EncodedTensor(weight.view(torch.uint8), scale, torch.zeros_like(scale), stored_as(fmt, stored))


def _input(fmt: Format, names: tuple[str, ...], read: Read) -> StoredInput:
    if fmt.dynamic:
        return StoredInput(fmt)
    scale = read(names[2]).float().reshape(1, 1)
    return StoredInput(fmt, QParams(scale, torch.zeros_like(scale)))


LAYOUT = Layout("fp8", layers)
