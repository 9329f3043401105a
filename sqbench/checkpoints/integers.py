"""The layouts of GPTQ (v1 and v2), of AWQ (gemm) and of AutoRound, which has both: integers with zero-points in words of 32 bits.

A layer `x` has `x.qweight`, `x.qzeros`, `x.scales`, and in GPTQ `x.g_idx`, the group of every column. The configuration may have
other settings for some layers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.compressed import over_blocks
from sqbench.checkpoints.stored import Layout, Read, StoredLayer
from sqbench.checkpoints.words import unpacked
from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale

Parts = Callable[[str, Format, Read], tuple[Tensor, Tensor]]
PARTS = ("qweight", "qzeros", "scales", "g_idx")
WIDTHS = (2, 3, 4, 8)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output column, of eight neighbours, that each nibble of a word holds
VERSIONS = ("gptq", "gptq_v2")
PACKINGS = {  # of AutoRound
    "auto_round:auto_gptq": "gptq",
    "auto_round:auto_awq": "awq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round": "gptq_v2",
}
NOT_READ = ("rotation_config", "spinquant_config", "super_bits", "super_group_size")
Settings = Mapping[str, Any]


def gptq_codes(qweight: Tensor, bits: int) -> Tensor:
    """Signed codes [out, in] of a qweight [in * bits / 32, out]."""
    rows, columns = qweight.shape[0] * 32 // bits, qweight.shape[1]
    return unpacked(qweight, bits, (rows, columns), 0).t().contiguous()


def gptq_zero_points(qzeros: Tensor, bits: int, outputs: int, *, less_one: bool) -> Tensor:
    """Signed zero-points [out, groups] of a qzeros [groups, out * bits / 32]. Version 1 stores them less one, by 2^bits."""
    half = 2 ** (bits - 1)
    stored = unpacked(qzeros, bits, (len(qzeros), outputs), 1).int() + half
    return ((stored + less_one) % 2**bits - half).t().contiguous()


def awq_matrix(words: Tensor, bits: int) -> Tensor:
    """Signed integers [out, n] of a qweight or qzeros [n, out * bits / 32]."""
    outputs = words.shape[1] * 32 // bits
    stored = unpacked(words, bits, (len(words), outputs), 1)
    return stored.view(len(words), -1, 8)[..., torch.tensor(AWQ_ORDER).argsort()].flatten(1).t().contiguous()


def _checked(config: Settings, place: str, symmetric: bool) -> Format:
    bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if bits not in WIDTHS or not isinstance(size, int) or (size < 1 and size != -1):
        raise UserError(f"{place}: bits={bits} group_size={size}: must be {', '.join(map(str, WIDTHS))} and a size, or -1 for rows")
    return Format(
        bits,
        symmetric,
        "channel" if size == -1 else "group",
        None if size == -1 else size,
        convention="half_range" if symmetric else "qmax",
        scale=Scale("float16"),
    )


def _gptq(config: Settings, shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    version = config.get("checkpoint_format", "gptq")
    if version not in VERSIONS:
        raise UserError(f"{place}: checkpoint_format={version}: must be one of {', '.join(VERSIONS)}")

    def of(name: str) -> Format:
        own = {**config, **_dynamic(config.get("dynamic") or {}, name)}
        return _checked(own, place, bool(own.get("sym", False)))

    return _layers(shapes, place, of, partial(_gptq_parts, less_one=version == "gptq"), packed=0)


def _dynamic(rules: Mapping[str, Settings], name: str) -> Settings:
    """The settings of GPTQModel's `dynamic` for a layer: those of the first pattern, with `+:` or without a sign, that fits."""
    return next((own for pattern, own in rules.items() if own and re.match(pattern.removeprefix("+:"), name)), {})


def _auto_round(config: Settings, shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    packing = config.get("packing_format")
    if packing not in PACKINGS:
        raise UserError(f"{place}: packing_format={packing}: must be one of {', '.join(PACKINGS)}")
    if strange := [key for key in NOT_READ if config.get(key)]:
        raise UserError(f"{place}: its quantization_config has {strange[0]}, which sqbench does not read")
    rules: Mapping[str, Settings] = config.get("extra_config") or {}

    def of(name: str) -> Format:
        found = rules.get(name) or next((own for pattern, own in rules.items() if own and re.search(pattern, name)), {})
        own = {**config, **found}
        if (kind := str(own.get("data_type", "int"))) != "int" or (own.get("act_bits") or 16) < 16:
            raise UserError(f"{place}: {name} has data_type={kind} act_bits={own.get('act_bits')}: must be int, and 16 or more")
        return _checked(own, place, bool(own.get("sym", True)))

    if PACKINGS[packing] == "awq":
        return _layers(shapes, place, lambda name: _four_bits(of(name), place), _awq_parts, packed=1)
    return _layers(shapes, place, of, partial(_gptq_parts, less_one=PACKINGS[packing] == "gptq"), packed=0)


def _awq(config: Settings, shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, StoredLayer]:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise UserError(f"{place}: version={version}: must be gemm")
    fmt = _checked(config, place, symmetric=not config.get("zero_point", True))
    return _layers(shapes, place, lambda name: _four_bits(fmt, place), _awq_parts, packed=1)


def _four_bits(fmt: Format, place: str) -> Format:
    if fmt.bits != 4:
        raise UserError(f"{place}: bits={fmt.bits}: must be 4 in AWQ's gemm layout")
    return fmt


def _layers(
    shapes: Mapping[str, tuple[int, ...]],
    place: str,
    of: Callable[[str], Format],
    parts: Parts,
    packed: int,
) -> dict[str, StoredLayer]:
    """The layers of either layout. Shapes are held against each other.

    Args:
        of: layer -> the format of its weight.
        parts: reads codes [out, in] and zero-points [out, groups].
        packed: the axis of qweight [in, out] whose words hold several codes.
    """
    found = {}
    for name in sorted(key.removesuffix(".qweight") for key in shapes if key.endswith(".qweight")):
        names = tuple(f"{name}.{part}" for part in PARTS if f"{name}.{part}" in shapes)
        if lost := [part for part in PARTS[:3] if f"{name}.{part}" not in names]:
            raise UserError(f"{place}: {name} has a qweight and no {lost[0]}")
        fmt, size = of(name), list(shapes[f"{name}.qweight"])
        if len(size) != 2:
            raise UserError(f"{place}: {name} has a qweight {size}, which is no matrix")
        size[packed] = size[packed] * 32 // fmt.bits
        inputs, outputs = size
        try:
            fmt.check_width(name, inputs, "quantization_config")
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        groups = 1 if fmt.group_size is None else -(-inputs // fmt.group_size)
        for part, needed in (("scales", (groups, outputs)), ("qzeros", (groups, outputs * fmt.bits // 32))):
            if (held := shapes[f"{name}.{part}"]) != needed:
                raise UserError(
                    f"{place}: {name} has {part} {list(held)}, and its qweight with group_size={fmt.group_size or -1} needs"
                    f" {list(needed)}"
                )
        found[name] = StoredLayer(fmt, None, names, partial(_encoded, parts, name, fmt, names, place))
    return found


def _gptq_parts(name: str, fmt: Format, read: Read, *, less_one: bool) -> tuple[Tensor, Tensor]:
    codes = gptq_codes(read(f"{name}.qweight"), fmt.bits)
    return codes, gptq_zero_points(read(f"{name}.qzeros"), fmt.bits, len(codes), less_one=less_one)


def _awq_parts(name: str, fmt: Format, read: Read) -> tuple[Tensor, Tensor]:
    return awq_matrix(read(f"{name}.qweight"), fmt.bits), awq_matrix(read(f"{name}.qzeros"), fmt.bits)


def _encoded(parts: Parts, name: str, fmt: Format, names: tuple[str, ...], place: str, read: Read) -> EncodedTensor:
    """The weight of a layer. Its scales have the dtype in which they are stored."""
    codes, zeros = parts(name, fmt, read)
    columns = None
    if fmt.group_size is not None and f"{name}.g_idx" in names:
        columns = _order(read(f"{name}.g_idx"), fmt.group_size, f"{place}: {name}")
    scale = read(f"{name}.scales").t().contiguous()
    fmt = replace(fmt, scale=Scale(str(scale.dtype).removeprefix("torch.")), contiguous=columns is None)
    if fmt.symmetric and bool(zeros.any()):  # the configuration may call codes symmetric that are not
        fmt = replace(fmt, symmetric=False, convention="qmax")
    return EncodedTensor(codes, over_blocks(scale.float(), fmt), over_blocks(zeros.float(), fmt), fmt, columns)


def _order(groups: Tensor, size: int, place: str) -> Tensor | None:
    """The order of columns in which groups are contiguous. None if they are as they stand."""
    if bool((groups < 0).any()):
        raise UserError(f"{place}: its g_idx has the group {int(groups.min())}")
    counts = groups.bincount()
    if bool((counts[:-1] != size).any()) or not 0 < int(counts[-1]) <= size:
        raise UserError(f"{place}: its g_idx has a group of {int(counts[counts != size][0])} columns, and group_size is {size}")
    if torch.equal(groups, torch.arange(len(groups)).to(groups) // size):
        return None
    return groups.argsort(stable=True)


GPTQ, AWQ, AUTO_ROUND = Layout("gptq", _gptq), Layout("awq", _awq), Layout("auto-round", _auto_round)
