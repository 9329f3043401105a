"""The layout of codes that a tool keeps in memory. `write` stores them as they are, in any format of integers or floats.

A layer `x` has `x.codes`, `x.scale` and `x.zero_point`, as in `EncodedTensor`. `config.json` has the format of every layer.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sqbench.checkpoints.stored import Layout, Read, StoredLayer
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format

NAME = "sqbench"
PARTS = ("codes", "scale", "zero_point")


def write(module: Any, tokenizer: Any, weights: Mapping[str, EncodedTensor], folder: Path) -> None:
    """Write a model of transformers, some of whose linear layers have codes.

    Args:
        weights: layer -> its weight [out, in]. What the module itself holds as a weight there is left out.
    """
    tensors = {f"{name}.{part}": getattr(one, part) for name, one in weights.items() for part in PARTS}
    seen = {id(module.get_submodule(name).weight) for name in weights}
    for name, parameter in module.named_parameters():  # a tied one is there once
        if id(parameter) not in seen:
            seen.add(id(parameter))
            tensors[name] = parameter
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    formats = {name: one.format.as_dict() for name, one in weights.items()}
    config = {**module.config.to_dict(), "quantization_config": {"quant_method": NAME, "formats": formats}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`."""
    found = {}
    for name, told in config["formats"].items():
        names = tuple(f"{name}.{part}" for part in PARTS)
        if lost := [part for part in names if part not in shapes]:
            raise UserError(f"{place}: {name} is said to be quantized, and {lost[0]} is in no file")
        try:
            fmt = Format.from_dict(told)
            fmt.check(f"{place}: {name}", activations=False)
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{place}: {name} has a format that sqbench does not read ({error})") from error
        codes, scale, zero_point = (shapes[part] for part in names)
        _check_shapes(fmt, codes, scale, zero_point, f"{place}: {name}")
        found[name] = StoredLayer(fmt, None, names, partial(_encoded, fmt, names))
    return found


def _check_shapes(fmt: Format, codes: tuple[int, ...], scale: tuple[int, ...], zero_point: tuple[int, ...], place: str) -> None:
    """Raise UserError if codes are no matrix, or scales do not fit its blocks."""
    if len(codes) != 2:
        raise UserError(f"{place} has codes {list(codes)}, and must have a matrix")
    rows, columns = codes
    fmt.check_width(place, columns, place)
    fitting = {"tensor": (1, 1), "channel": (rows, 1), "group": (rows, columns // (fmt.group_size or 1), 1)}
    if scale != fitting.get(fmt.granularity) or zero_point != scale:
        raise UserError(f"{place} has scales {list(scale)} and zero-points {list(zero_point)}, and {fmt} of a weight {list(codes)}")


def _encoded(fmt: Format, names: tuple[str, ...], read: Read) -> EncodedTensor:
    codes, scale, zero_point = (read(name) for name in names)
    if codes.dtype != (torch.int8 if fmt.is_integer else torch.uint8):
        raise UserError(f"{names[0]}: has the dtype {codes.dtype}, which is not that of {fmt}")
    return EncodedTensor(codes, scale.float(), zero_point.float(), fmt)


LAYOUT = Layout(NAME, layers)
