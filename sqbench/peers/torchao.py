"""torchao: round to nearest by its configurations of linear layers, saved by transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sqbench.formats.scheme import Scheme
from sqbench.peers.tool import Order, Tool, register


@register
class TorchAo(Tool):
    """The configuration that makes the formats. The arguments are its own. The windows are not used."""

    name = "torchao"
    package = "torchao"
    install = "`pip install torchao` installs it"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if _configuration(scheme) is None:
            works = "integer weights for channels or groups, FP8 weights for channels, and 8-bit dynamic inputs for tokens"
            return f"has no configuration for bits={scheme.name} here; it has {works}"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        import torchao.quantization as ao
        from transformers import AutoModelForCausalLM, TorchAoConfig

        fmt, name = order.scheme.weights, _configuration(order.scheme)
        assert fmt is not None
        assert name is not None
        given = {"granularity": ao.PerGroup(fmt.group_size) if fmt.group_size else ao.PerRow()}
        if name == "IntxWeightOnlyConfig":
            given = {
                "weight_dtype": getattr(torch, f"int{fmt.bits}"),
                "granularity": ao.PerGroup(fmt.group_size) if fmt.group_size else ao.PerAxis(0),
                "mapping_type": ao.MappingType.SYMMETRIC if fmt.symmetric else ao.MappingType.ASYMMETRIC,
            }
        how = TorchAoConfig(getattr(ao, name)(**given, **order.arguments), modules_to_not_convert=list(order.ignore))
        AutoModelForCausalLM.from_pretrained(
            module.name_or_path, dtype=module.dtype, local_files_only=True, quantization_config=how
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _configuration(scheme: Scheme) -> str | None:
    """The name of torchao's class for the formats of a scheme. None if it has none that a CPU can make and save."""
    weights, inputs = scheme.weights, scheme.activations
    if weights is None or weights.granularity not in ("channel", "group") or weights.two_levels or weights.scale.dtype == "e8m0":
        return None
    floats = weights.element == "e4m3" and weights.group_size is None
    if inputs is not None:
        rows = inputs.dynamic and inputs.granularity == "token" and inputs.symmetric and inputs.bits == weights.bits == 8
        if not rows or inputs.element != weights.element or weights.group_size is not None or not weights.symmetric:
            return None
        return "Float8DynamicActivationFloat8WeightConfig" if floats else "Int8DynamicActivationInt8WeightConfig"
    if floats:
        return "Float8WeightOnlyConfig"
    if not weights.is_integer:
        return None
    return "Int8WeightOnlyConfig" if weights.bits == 8 and weights.symmetric else "IntxWeightOnlyConfig"
