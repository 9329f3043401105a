"""optimum-quanto: weights by its `quantize` and `freeze`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.codes import write
from sqbench.checkpoints.compressed import over_blocks
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale
from sqbench.formats.scheme import Scheme
from sqbench.peers.tool import Order, Tool, register

OURS = ("weights", "activations", "include", "exclude")
SHIFTED = (2, 4)  # bits of integers with a float minimum, in groups of a size that quanto chooses by the layer's inputs


@register
class OptimumQuanto(Tool):
    """`quantize(model, weights=..., **arguments)` and `freeze(model)`. The windows are not used."""

    name = "optimum-quanto"
    package = "optimum-quanto"
    install = "`pip install --no-deps optimum-quanto ninja` installs it"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if taken := [key for key in arguments if key in OURS]:
            return f"method.arguments.{taken[0]}: is chosen by bits; leave it out"
        fmt = scheme.weights
        if fmt is None or scheme.activations is not None or _type(fmt) is None:
            return f"makes int2, int4, int8 and FP8 weights with float inputs here, not bits={scheme.name}; use bits=w8a16"
        if fmt.bits in SHIFTED and not (fmt.has_minimum and fmt.granularity == "group"):
            return f"has a minimum for each group of {fmt.bits} bits; use bits.weights.zero_point=minimum with groups"
        if fmt.bits == 8 and not (fmt.symmetric and fmt.granularity == "channel"):
            return f"has symmetric weights with a scale for each channel at 8 bits, not {fmt}; use bits=w8a16 or bits=fp8a16"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        from optimum import quanto

        fmt = order.scheme.weights
        assert fmt is not None
        quanto.quantize(module, weights=_type(fmt), exclude=list(order.ignore), **order.arguments)
        quanto.freeze(module)
        weights = {name: part.weight for name, part in module.named_modules() if isinstance(part, quanto.nn.QLinear)}
        write(module, tokenizer, {name: codes_of(weight, fmt) for name, weight in weights.items()}, Path(folder))


def codes_of(weight: Any, fmt: Format) -> EncodedTensor:
    """The codes and scales of a frozen weight as quanto stores them.

    Args:
        fmt: the format that quanto was asked for.

    Raises:
        ValueError: it is stored in another way.
    """
    rows, columns = weight.shape
    data, scale = weight._data, weight._scale
    own = replace(fmt, scale=Scale(str(scale.dtype).removeprefix("torch.")))
    if fmt.bits == 8:
        codes = data if fmt.is_integer else data.view(torch.uint8)
        blocks = over_blocks(scale.float(), own)
        return EncodedTensor(codes, blocks, torch.zeros_like(blocks), own)
    if not weight._shift.dtype.is_floating_point:
        raise ValueError(f"its shifts are {weight._shift.dtype}, and must be floats")
    own = replace(own, group_size=weight._group_size or columns)
    codes = data.unpack().int().reshape(rows, columns) + own.code_min  # value = code * scale - shift, with codes from 0
    blocks, shifts = (values.float().reshape(rows, -1) for values in (scale, weight._shift))
    return EncodedTensor(codes.to(torch.int8), over_blocks(blocks, own), over_blocks(-shifts, own), own)


def _type(fmt: Format) -> str | None:
    """quanto's name of a type of weights. None if it has none."""
    return {("int", 2): "qint2", ("int", 4): "qint4", ("int", 8): "qint8", ("e4m3", 8): "qfloat8_e4m3fn"}.get(
        (fmt.element, fmt.bits)
    )
