"""NNCF: integer weights by `nncf.compress_weights` of its torch backend."""

import re
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

OURS = ("mode", "group_size", "dataset", "subset_size", "ignored_scope", "ratio", "all_layers", "backup_mode", "compression_format")
HOOKS = "__nncf_hooks"  # the submodule in which NNCF keeps scales and zero-points


@register
class Nncf(Tool):
    """`nncf.compress_weights(model, **arguments)` with its own defaults. Scales are float16."""

    name = "nncf"
    package = "nncf"
    install = "`pip install nncf` installs it"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if taken := [key for key in arguments if key in OURS]:
            return f"method.arguments.{taken[0]}: is chosen by bits and calibration; leave it out"
        if arguments.get("awq"):
            return "method.arguments.awq=true: puts factors before layers, which no checkpoint of codes holds; leave it out"
        fmt = scheme.weights
        if fmt is None or scheme.activations is not None or not fmt.is_integer or fmt.has_minimum or fmt.bits not in (4, 8):
            return f"makes integer weights of 4 and 8 bits with float inputs here, not bits={scheme.name}; use bits=w4a16"
        if fmt.granularity not in (("channel", "group") if fmt.bits == 4 else ("channel",)):
            return f"has a scale for each channel at 8 bits, and for each channel or group at 4; bits.weights are {fmt}"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        import nncf

        fmt = order.scheme.weights
        assert fmt is not None
        kept = [rf"(^|/){re.escape(name.replace('.', '/'))}/linear/\d+$" for name in order.ignore]
        module.config.use_cache = False  # it traces a pass, and a cache is no tensor
        made = nncf.compress_weights(
            module,
            mode=nncf.CompressWeightsMode[f"INT{fmt.bits}_{'SYM' if fmt.symmetric else 'ASYM'}"],
            group_size=fmt.group_size or -1,
            dataset=nncf.Dataset([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows.split(1)]),
            subset_size=len(windows),
            ignored_scope=nncf.IgnoredScope(patterns=kept, types=["embedding"], validate=False),
            **order.arguments,
        )
        module.config.use_cache = True
        codes = codes_of(made, fmt)
        delattr(made, HOOKS)
        write(made, tokenizer, codes, Path(folder))


def codes_of(module: Any, fmt: Format) -> dict[str, EncodedTensor]:
    """Layer -> its codes, scales and zero-points as NNCF stores them.

    Args:
        fmt: the format that NNCF was asked for.

    Raises:
        ValueError: NNCF computes something else with a tensor than to unpack it.
    """
    from nncf.torch.quantization.quantize_functions import unpack_int4, unpack_uint4

    storage, found = getattr(module, HOOKS), {}
    if len(storage.pre_hooks):
        raise ValueError(f"it changes the input of {next(iter(storage.pre_hooks))}, which is no code")
    for key, hooks in storage.post_hooks.items():
        (how,) = hooks.values()
        name = key.rpartition("__")[0].replace(":", ".").removesuffix(".weight")
        weight, kind = module.get_submodule(name).weight, type(how).__name__
        zero_point: Any = getattr(how, "_zero_point", None)
        if kind == "INT8SymmetricWeightsDecompressor":
            codes = weight
        elif kind == "INT8AsymmetricWeightsDecompressor":
            codes, zero_point = weight.int() - 128, zero_point.int() - 128
        elif kind == "INT4SymmetricWeightsDecompressor":
            codes = unpack_int4(weight).reshape(how.result_shape)
        elif kind == "INT4AsymmetricWeightsDecompressor":
            codes = unpack_uint4(weight).int().reshape(how.result_shape) - 8
            zero_point = unpack_uint4(how._zero_point).int().reshape(how.zero_point_shape) - 8
        else:
            raise ValueError(f"it unpacks {name} by {kind}, which sqbench does not know")
        own = replace(fmt, bits=8 if kind.startswith("INT8") else 4, symmetric=zero_point is None, scale=Scale("float16"))
        blocks = over_blocks(how._scale.float().flatten(1), own)
        zeros = torch.zeros_like(blocks) if zero_point is None else over_blocks(zero_point.float().flatten(1), own)
        found[name] = EncodedTensor(codes.data.to(torch.int8), blocks, zeros, own)
    return found
