"""The rules of other tools under one name: what `bits.as=` sets. Data, and one function that applies it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqbench.errors import UserError, known
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme

Rules = Mapping[str, Any]  # fields of `Format`, and those of its scale with "scale." before them

NNCF = {"scale.dtype": "float16", "scale.times": "unrounded"}

# Tool -> kind of format -> its rules. A kind that is missing is a format that the tool does not have, or that nobody has checked.
# Every entry is held against numbers of the tool itself: compressed-tensors 0.20.1, torchao (36027d82d), ModelOpt 0.47.0, NNCF
# 3.4.0, AutoRound 0.16.1, AutoAWQ (88e4c76), IST-DASLab/gptq (2d65066), microxcaling (7bc4195), bitsandbytes 0.50.2.
TOOLS: Mapping[str, Mapping[str, Rules]] = {
    "compressed-tensors": {
        "symmetric int": {"convention": "half_range"},
        "asymmetric int": {"shift": "before"},
        "fp8": {},
        "mx": {"scale.rule": "even_m1"},
        "nvfp4": {"scale.order": "compressed-tensors"},
    },
    "torchao": {
        "symmetric int": {"convention": "half_range", "scale.times": "reciprocal"},
        "asymmetric int": {"scale.times": "reciprocal"},
        "fp8": {},
        "mx": {"scale.rule": "floor"},
        "nvfp4": {"scale.order": "torchao"},
    },
    "modelopt": {"mx": {"scale.rule": "rceil"}, "nvfp4": {"scale.order": "modelopt"}},
    "nncf": {
        "symmetric int": {"convention": "signed", **NNCF},
        "asymmetric int": {"range": "own", "shift": "before", **NNCF},
        "fp8": NNCF,
        "fp4": NNCF,
        "mx": {"scale.rule": "rceil"},
        "nf4": NNCF,
    },
    "auto-round": {"nvfp4": {"scale.order": "auto-round"}},
    "autoawq": {"symmetric int": {"convention": "qmax"}, "asymmetric int": {"range": "own"}},
    "gptq": {"symmetric int": {"convention": "half_range"}, "asymmetric int": {}},
    "microxcaling": {"mx": {"scale.rule": "floor"}},
    "bitsandbytes": {"nf4": {}},
}
WEIGHTS_ALONE = ("nncf", "autoawq", "gptq", "bitsandbytes")  # whose rules here are those of weights

# What other tools call a scheme -> the same scheme here.
CALLED = {
    "W8A8": "bits=w8a8_dynamic bits.as=compressed-tensors",
    "W8A16": "bits=w8a16 bits.weights.granularity=group bits.weights.group_size=128 bits.as=compressed-tensors",
    "W4A16": "bits=w4a16_g128_sym bits.as=compressed-tensors",
    "W4A16_ASYM": "bits=w4a16_g128 bits.as=compressed-tensors",
    "FP8": "bits=fp8",
    "FP8_DYNAMIC": "bits=fp8_dynamic",
    "FP8_BLOCK": "bits=fp8_block",
    "NVFP4": "bits=nvfp4 bits.as=compressed-tensors",
    "NVFP4A16": "bits=nvfp4a16 bits.as=compressed-tensors",
    "MXFP4": "bits=mxfp4 bits.as=compressed-tensors",
    "MXFP4A16": "bits=mxfp4a16 bits.as=compressed-tensors",
    "MXFP8": "bits=mxfp8 bits.as=compressed-tensors",
    "INT4_SYM": "bits=w4a16_g128_sym bits.as=nncf",
    "INT4_ASYM": "bits=w4a16_g128 bits.as=nncf",
    "NF4": "bits=nf4 bits.as=bitsandbytes",
}


def kind_of(fmt: Format) -> str:
    """The kind of a format that tools have rules for."""
    if fmt.two_levels:
        return "nvfp4"
    if fmt.scale.dtype == "e8m0":
        return "mx"
    if fmt.ties != "even" or fmt.has_minimum:
        return "llama.cpp int"
    if fmt.is_integer:
        return "symmetric int" if fmt.symmetric else "asymmetric int"
    return {"e4m3": "fp8", "e5m2": "fp8", "e2m1": "fp4", "nf4": "nf4"}.get(fmt.element, fmt.element)


def as_tool(scheme: Scheme, tool: str) -> Scheme:
    """A scheme under the rules of another tool.

    Raises:
        UserError: no such tool, or it has no such format. The message names those that have.
    """
    if tool not in TOOLS:
        raise UserError(f"bits.as={tool}: {known(tool, TOOLS)}")
    weights, activations = scheme.weights, scheme.activations
    return replace(
        scheme,
        name=f"{scheme.name}_{tool}",
        weights=weights and _under(weights, tool, scheme.name, tool in TOOLS),
        activations=activations and _under(activations, tool, scheme.name, tool not in WEIGHTS_ALONE),
    )


def _under(fmt: Format, tool: str, scheme: str, has: bool) -> Format:
    kind = kind_of(fmt)
    if not has or kind not in TOOLS[tool]:
        others = [name for name, kinds in TOOLS.items() if kind in kinds and (has or name not in WEIGHTS_ALONE)]
        what = f"{kind} {'weights' if has else 'activations'}"
        raise UserError(f"bits.as={tool}: has no rules for the {what} of bits={scheme}; these have: {', '.join(others) or 'none'}")
    rules = TOOLS[tool][kind]
    own = {name: value for name, value in rules.items() if "." not in name}
    scale = {name.removeprefix("scale."): value for name, value in rules.items() if "." in name}
    return replace(fmt, scale=replace(fmt.scale, **scale), **own)
