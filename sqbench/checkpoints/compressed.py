"""The layout of compressed-tensors, which llm-compressor and vLLM write and read. Parsing and unpacking are that package's own.

A layer `x` has `x.weight` (8-bit codes) or `x.weight_packed`, `x.weight_scale`, and by its scheme `x.weight_zero_point`,
`x.weight_shape`, `x.weight_global_scale`, `x.input_scale`, `x.input_zero_point` and `x.input_global_scale`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.scales import of_e8m0, stored_as
from sqbench.checkpoints.stored import Layout, Read, StoredInput, StoredLayer
from sqbench.checkpoints.words import unpacked
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.nibbles import of_nibbles
from sqbench.formats.params import QParams
from sqbench.formats.scale import Scale
from sqbench.formats.scaling import E4M3_LARGEST

ELEMENTS = {("float", 8): "e4m3", ("float", 4): "e2m1"}
NOT_READ = ("kv_cache_scheme", "transform_config", "moe_sparsity_config")
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale")
INPUTS = ("input_scale", "input_zero_point", "input_global_scale")


def layers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    """See `Layout.layers`."""
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError

    if used := [key for key in NOT_READ if config.get(key)]:
        raise UserError(f"{place}: its quantization_config has {used[0]}, which sqbench does not read")
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise UserError(f"{place}: its weights are sparse ({config['sparsity_config']['format']}), which sqbench does not read")
    try:
        parsed = QuantizationConfig.model_validate({key: config[key] for key in QuantizationConfig.model_fields if key in config})
    except (ValidationError, ValueError, NotImplementedError) as error:
        raise UserError(f"{place}: its quantization_config is not one of compressed-tensors ({error})") from error
    found = {}
    for name in sorted(key.removesuffix(".weight_scale") for key in shapes if key.endswith(".weight_scale")):
        scheme = _scheme_of(name, parsed, place)
        if scheme.output_activations is not None:
            raise UserError(f"{place}: {name} rounds its output, which sqbench does not read")
        names = tuple(f"{name}.{part}" for part in (*PARTS, *INPUTS) if f"{name}.{part}" in shapes)
        weight = format_of(scheme.weights, f"{place}: {name}", activations=False)
        _check_shape(name, weight, shapes, place)
        activation = None
        if scheme.input_activations is not None:
            activation = format_of(scheme.input_activations, f"{place}: {name}", activations=True)
        found[name] = StoredLayer(
            weight, activation, names, partial(_encoded, name, weight, names), partial(_input, name, activation, names)
        )
    return found


def _scheme_of(name: str, parsed: Any, place: str) -> Any:
    """The scheme whose targets name a layer. A name or a pattern comes before a class of layers."""
    from compressed_tensors.utils.match import match_name

    schemes = list(parsed.config_groups.values())
    by_name = [one for one in schemes if any(match_name(name, target) for target in one.targets)]
    by_class = [one for one in schemes if "Linear" in one.targets]
    for one in (*by_name, *by_class):
        if one.weights is not None:
            return one
    raise UserError(f"{place}: {name} has a weight_scale, and no config_groups of its quantization_config names it")


def format_of(args: Any, place: str, *, activations: bool) -> Format:
    """The format of compressed-tensors' QuantizationArgs.

    Raises:
        UserError: no format of ours is the same.
    """
    kind, bits, strategy = (str(getattr(value, "value", value)) for value in (args.type, args.num_bits, args.strategy))
    element = "int" if kind == "int" else ELEMENTS.get((kind, int(bits)))
    if element is None:
        raise UserError(f"{place} has {kind} elements of {bits} bits, which sqbench does not read")
    two_levels = strategy == "tensor_group"
    powers = str(args.scale_dtype).removeprefix("torch.") in ("uint8", "float8_e8m0fnu") and not two_levels
    scale = Scale("e4m3", second="float32", order="compressed-tensors") if two_levels else Scale()
    if powers:
        scale = Scale("e8m0", "even_m1")
    fmt = Format(
        int(bits),
        bool(args.symmetric),
        "group" if two_levels else strategy,
        args.group_size if strategy in ("group", "tensor_group") else args.block_structure[1] if strategy == "block" else None,
        dynamic=bool(args.dynamic),
        convention="half_range" if element == "int" and args.symmetric else "qmax",
        scale=scale,
        element=element,
        block_rows=args.block_structure[0] if strategy == "block" else None,
        shift="after" if args.symmetric else "before",
    )
    try:
        fmt.check("weights" if not activations else "input_activations", activations=activations)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return fmt


def _check_shape(name: str, fmt: Format, shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Raise UserError if the blocks of a layer's format and its scales do not fit its weight."""
    whole = shapes.get(f"{name}.weight")
    if len(stored := shapes.get(f"{name}.weight_packed", whole) or ()) != 2:
        raise UserError(f"{place}: {name} has a weight {list(stored)}, which is no matrix")
    outputs, inputs = (shapes.get(f"{name}.weight_packed") or (0, 0)) if whole is None else whole
    if whole is None:  # of packed weights the headers tell the rows; columns follow from groups
        inputs = inputs * (32 // fmt.bits if fmt.is_integer else 2) if 32 % fmt.bits == 0 else inputs * 32 // fmt.bits
    try:
        fmt.check_width(name, inputs, "config_groups.weights")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    groups = 1 if fmt.group_size is None else -(-inputs // fmt.group_size)
    rows = 1 if fmt.granularity == "tensor" else -(-outputs // (fmt.block_rows or 1))
    held = shapes[f"{name}.weight_scale"]
    if torch.Size(held).numel() != rows * groups:
        raise UserError(
            f"{place}: {name} has scales {list(held)}, and {fmt} of a weight {[outputs, inputs]} needs {[rows, groups]}"
        )


def _encoded(name: str, fmt: Format, names: tuple[str, ...], read: Read) -> EncodedTensor:
    """The weight of a layer. The scale has the dtype in which it is stored."""
    codes = _codes(name, fmt, names, read)
    stored = read(f"{name}.weight_scale")
    scale = _scales(stored)
    if fmt.two_levels:
        whole = read(f"{name}.weight_global_scale").float()
        scale = scale / whole
        fmt = replace(fmt, amax=_largest(whole, fmt))
    else:
        fmt = stored_as(fmt, stored)
    zero_point = torch.zeros_like(scale)
    if not fmt.symmetric:
        zero_point = _zero_points(read(f"{name}.weight_zero_point"), fmt, scale).to(scale.dtype)
    return EncodedTensor(codes, over_blocks(scale, fmt), over_blocks(zero_point, fmt), fmt)


def _codes(name: str, fmt: Format, names: tuple[str, ...], read: Read) -> Tensor:
    if f"{name}.weight" in names:
        weight = read(f"{name}.weight")
        return weight if fmt.is_integer else weight.view(torch.uint8)
    packed = read(f"{name}.weight_packed")
    if fmt.is_integer:
        rows, columns = read(f"{name}.weight_shape").tolist()
        return unpacked(packed, fmt.bits, (rows, columns), 1)
    return of_nibbles(packed)


def _scales(stored: Tensor) -> Tensor:
    """Stored scales as float32. Bytes are exponents of two."""
    return of_e8m0(stored) if stored.dtype == torch.uint8 else stored.float()


def _zero_points(stored: Tensor, fmt: Format, scale: Tensor) -> Tensor:
    return unpacked(stored, fmt.bits, (scale.shape[0], scale.shape[1]), 0) if stored.dtype == torch.int32 else stored


def _largest(whole: Tensor, fmt: Format) -> float:
    """The largest magnitude of the tensor whose global scale this is, to the last bit where there is one."""
    near = (E4M3_LARGEST * fmt.levels / whole).reshape(1)
    every = [near, near.nextafter(torch.zeros(1)), near.nextafter(torch.full((1,), torch.inf))]
    same = (one for one in every if torch.equal(global_scale(one, fmt), whole.reshape(1)))
    return float(next(same, near))


def global_scale(amax: Tensor, fmt: Format) -> Tensor:
    """The scale of scales as compressed-tensors finds and stores it: the number that the scale of a block is multiplied by."""
    return E4M3_LARGEST * fmt.levels * (1 / amax)


def over_blocks(values: Tensor, fmt: Format) -> Tensor:
    """Scales [1], [out], [out, 1] or [out, groups] of a matrix in the shape that broadcasts against its blocks."""
    if fmt.granularity == "tensor":
        return values.reshape(1, 1)
    rows = values.reshape(len(values), -1)
    return rows.unsqueeze(-1) if fmt.group_size is not None else rows


def _input(name: str, fmt: Format | None, names: tuple[str, ...], read: Read) -> StoredInput | None:
    """How the input of a layer is rounded."""
    if fmt is None:
        return None
    if fmt.two_levels:
        return StoredInput(replace(fmt, amax=_largest(read(f"{name}.input_global_scale").float(), fmt)))
    if fmt.dynamic:
        return StoredInput(fmt)
    scale = _scales(read(f"{name}.input_scale")).reshape(1, 1)
    zero = f"{name}.input_zero_point"
    zero_point = read(zero).float().reshape(1, 1) if zero in names and not fmt.symmetric else torch.zeros_like(scale)
    return StoredInput(fmt, QParams(scale, zero_point))


LAYOUT = Layout("compressed-tensors", layers)
