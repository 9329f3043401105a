"""The layout of torchao. A weight `x.weight` is stored in parts: `x._weight_qdata`, `x._weight_scale` and others.

The headers of the files have the class of every weight and its attributes, as JSON. No class of torchao is made for them.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sqbench.checkpoints.compressed import over_blocks
from sqbench.checkpoints.scales import stored_as
from sqbench.checkpoints.stored import Layout, Read, StoredInput, StoredLayer
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import as_tool

PARTS = ("qdata", "scale", "zero_point")
GRANULARITIES = {"PerRow": "token", "PerTensor": "tensor"}


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`. The entry `metadata` of the configuration holds that of the files' headers."""
    found = {}
    for weight, told in config["metadata"].items():
        try:
            about = json.loads(told)
            kind = about["_type"]
        except (ValueError, TypeError, KeyError):  # an entry of something else
            continue
        if kind == "Tensor":
            continue
        name, _, leaf = weight.rpartition(".")
        where = f"{place}: {weight}"
        if kind not in KINDS:
            raise UserError(f"{where} is a {kind}: must be one of {', '.join(KINDS)}")
        if strange := [part for part in about["_tensor_data_names"] if part not in PARTS]:
            raise UserError(f"{where} is stored with {strange[0]}, which sqbench does not read")
        parts = {part: f"{name}._{leaf}_{part}" for part in about["_tensor_data_names"]}
        if lost := [part for part in (*parts.values(), f"{name}._{leaf}_qdata") if part not in shapes]:
            raise UserError(f"{where} is said to be quantized, and {lost[0]} is in no file")
        fmt, activation = _formats(about["_data"], kind, shapes[parts["qdata"]], where)
        _check_scales(fmt, shapes[parts["qdata"]], shapes[parts["scale"]], where)
        found[name] = StoredLayer(
            fmt, activation, tuple(parts.values()), partial(_encoded, fmt, parts), partial(_input, activation)
        )
    return found


def _formats(data: Mapping[str, Any], kind: str, shape: tuple[int, ...], where: str) -> tuple[Format, Format | None]:
    """The formats of a weight and of its layer's input, under torchao's rules.

    Raises:
        UserError: no formats of ours are the same.
    """
    element, bits, act = KINDS[kind](data, where)
    rows, columns = _block(data.get("block_size"), shape, where)
    sharing = "tensor" if (rows, columns) == shape else "channel" if (rows, columns) == (1, shape[1]) else "group"
    if sharing == "group" and (rows != 1 or shape[1] % columns):
        raise UserError(f"{where} has blocks {[rows, columns]} of a matrix {list(shape)}, which sqbench does not read")
    fmt = Format(bits, True, sharing, columns if sharing == "group" else None, element=element)
    scheme = as_tool(Scheme("torchao", fmt, act), "torchao")
    assert scheme.weights is not None
    return scheme.weights, scheme.activations


def _block(size: Any, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    if len(shape) != 2 or not isinstance(size, list) or len(size) not in (0, 2):
        raise UserError(f"{where} has blocks {size} of a tensor {list(shape)}, and must have blocks of a matrix")
    rows, columns = size or shape
    return int(rows), int(columns)


def _int8(data: Mapping[str, Any], where: str) -> tuple[str, int, Format | None]:
    return "int", 8, _dynamic(data, "int", where)


def _float8(data: Mapping[str, Any], where: str) -> tuple[str, int, Format | None]:
    return "e4m3", 8, _dynamic(data, "e4m3", where)


def _intx(data: Mapping[str, Any], where: str) -> tuple[str, int, Format | None]:
    """Integers of fewer bits, one in a byte."""
    target = str(data["target_dtype"]["_data"])
    if target not in (names := {f"int{bits}": bits for bits in range(2, 9)}):
        raise UserError(f"{where} has integers {target}: must be one of {', '.join(names)}")
    asked = data.get("activation_quantization")
    if asked is None:
        return "int", names[target], None
    if (how := asked["_data"] if isinstance(asked, dict) else str(asked)).lower() != "int8_asym_per_token":
        raise UserError(f"{where} rounds its input as {how}, which sqbench does not read")
    return "int", names[target], Format(8, False, "token", dynamic=True)


def _dynamic(data: Mapping[str, Any], element: str, where: str) -> Format | None:
    """The format of a layer's input, whose ranges come from the input itself. None if it stays in float."""
    if (asked := data.get("act_quant_kwargs")) is None:
        return None
    own = asked["_data"]
    sharing, symmetric = own["granularity"]["_type"], own.get("mapping_type", {}).get("_data", "SYMMETRIC") == "SYMMETRIC"
    bounds = [key for key in ("hp_value_lb", "hp_value_ub", "reduce_range") if own.get(key)]
    dtype = own.get("float8_dtype", {}).get("_data", "float8_e4m3fn")
    if bounds or sharing not in GRANULARITIES or dtype != "float8_e4m3fn":
        raise UserError(f"{where} rounds its input with {bounds or sharing} in {dtype}, which sqbench does not read")
    return Format(8, symmetric, GRANULARITIES[sharing], dynamic=True, element=element)


KINDS = {"Int8Tensor": _int8, "IntxUnpackedToInt8Tensor": _intx, "Float8Tensor": _float8}


def _check_scales(fmt: Format, shape: tuple[int, ...], held: tuple[int, ...], where: str) -> None:
    """Raise UserError if the number of scales is not that of the blocks."""
    outputs, inputs = shape
    needed = (1 if fmt.granularity == "tensor" else outputs) * (inputs // (fmt.group_size or inputs))
    if torch.Size(held).numel() != needed:
        raise UserError(f"{where} has scales {list(held)}, and {fmt} of a weight {list(shape)} needs {needed}")


def _encoded(fmt: Format, parts: Mapping[str, str], read: Read) -> EncodedTensor:
    """The weight of a layer. Zero-points make a format asymmetric: the headers do not tell."""
    codes, scale = read(parts["qdata"]), read(parts["scale"])
    fmt = stored_as(fmt, scale)
    zeros = read(parts["zero_point"]).float() if "zero_point" in parts else torch.zeros_like(scale)
    if bool(zeros.any()):
        fmt = replace(fmt, symmetric=False, convention="qmax")
    if not fmt.is_integer:
        codes = codes.view(torch.uint8)
    return EncodedTensor(codes, over_blocks(scale.float(), fmt), over_blocks(zeros.float(), fmt), fmt)


def _input(fmt: Format | None, read: Read) -> StoredInput | None:
    return None if fmt is None else StoredInput(fmt)


LAYOUT = Layout("torchao", layers)
