"""Scaled rotary positions of GGUF files: keys and a tensor of factors there, parameters in transformers."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sqbench.errors import UserError, known

FACTORS = "rope_freqs.weight"  # by which llama.cpp divides the frequencies, float32 [head size / 2]
SCALING = "rope.scaling."
# Architectures whose frequencies llama.cpp scales as transformers does. Gemma 3 scales those of its layers without a window.
SCALED = {"llama": ("linear", "yarn"), "qwen2": ("linear", "yarn"), "qwen3": ("linear", "yarn"), "gemma3": ("linear",)}
DIVIDED = ("llama",)  # for which llama.cpp reads the tensor
# What transformers computes, and llama.cpp where a file does not say otherwise.
USUAL = {
    "attn_factor": 1,
    "yarn_attn_factor": 1,
    "yarn_ext_factor": 1,
    "yarn_beta_fast": 32,
    "yarn_beta_slow": 1,
    "yarn_log_multiplier": 0,
}
WITHOUT_EFFECT = ("finetuned", "original_context_length")  # the latter is read for yarn
USUAL_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
ORIGINAL = "original_max_position_embeddings"
# What a file has of transformers' parameters.
WRITTEN = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "linear": ("factor",),
    "yarn": ("factor", ORIGINAL),
}
ORIGINALS = tuple(2**power for power in range(5, 21))  # lengths of contexts before scaling; that of Llama 3 is 8192
EXACT = 1e-6  # what two programs in float32 differ by in the share of a frequency that is left


def read(
    config: Mapping[str, Any], architecture: str, told: Mapping[str, Any], factors: Tensor | None, place: str
) -> dict[str, Any]:
    """A configuration with the parameters of its positions.

    Args:
        config: that of transformers, without them.
        architecture: llama.cpp's name of it.
        told: the file's keys without the architecture.
        factors: the tensor `FACTORS`. None if the file has none.

    Raises:
        UserError: transformers has no parameters that give the same frequencies.
    """
    given = {key.removeprefix(SCALING): value for key, value in told.items() if key.startswith(SCALING)}
    # llama.cpp scales linearly if a file does not say how, and knows an older key of the factor.
    kind, factor = str(given.pop("type", "linear")), float(given.pop("factor", told.get("rope.scale_linear", 0)) or 1)
    strange = [key for key, value in given.items() if key not in WITHOUT_EFFECT and USUAL.get(key) != value]
    if strange:
        raise UserError(f"{place}: {SCALING}{strange[0]}={given[strange[0]]} scales positions as transformers does not")
    scaled, divided = kind != "none" and factor != 1, factors is not None and bool((factors != 1).any())
    if scaled and kind not in (kinds := ("none", *SCALED.get(architecture, ()))):
        raise UserError(f"{place}: {SCALING}type={kind} of {architecture}: {known(kind, kinds)}")
    if divided and (scaled or architecture not in DIVIDED):
        raise UserError(f"{place}: {FACTORS} scales the positions of {architecture}{' twice' * scaled}; it must be Llama's alone")
    if not scaled and not divided:
        return dict(config)
    plain = {"rope_theta": config.get("rope_theta", 10000.0)}
    if scaled:
        parameters = {"rope_type": kind, **plain, "factor": factor}
        if kind == "yarn":
            parameters[ORIGINAL] = given.get("original_context_length", told["context_length"])
    else:
        assert factors is not None
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        parameters = _explained(factors.flatten(), plain, size, place)
    if architecture == "gemma3":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    return {**{key: value for key, value in config.items() if key != "rope_theta"}, "rope_parameters": parameters}


def add(writer: Any, config: Mapping[str, Any], architecture: str, place: str) -> None:
    """Add the positions of a model to a file, as llama.cpp's converter does.

    Args:
        writer: a GGUFWriter.
        config: that of transformers.
        architecture: llama.cpp's name of it.
        place: what is written, in errors.

    Raises:
        UserError: llama.cpp has no keys for them.
    """
    from gguf import RopeScalingType

    told = {key: value for key, value in config["rope_parameters"].items() if value is not None}
    kind, theta = told.pop("rope_type", "default"), told.pop("rope_theta")
    told.pop("type", None)  # the older key of rope_type, which transformers has read
    kinds = ("default", *SCALED[architecture], *["llama3"] * (architecture in DIVIDED))
    if kind not in kinds:
        raise UserError(f"{place} has rope_type={kind}: {known(kind, kinds)}")
    usual: dict[str, Any] = {"partial_rotary_factor": 1}
    if kind == "yarn":
        usual |= {**USUAL_YARN, "attention_factor": 0.1 * math.log(told["factor"]) + 1}
    length = {ORIGINAL: config["max_position_embeddings"]}
    own = {key: value for key, value in {**length, **told}.items() if key in WRITTEN.get(kind, ())}
    if strange := [key for key, value in told.items() if key not in (*own, ORIGINAL) and usual.get(key) != value]:
        raise UserError(f"{place} has {strange[0]}={told[strange[0]]} in rope_parameters, which is not written")
    writer.add_rope_freq_base(theta)
    if kind == "llama3":
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_tensor(FACTORS, (1 / _shares({"rope_type": kind, "rope_theta": theta, **own}, size)).numpy())
    elif kind != "default":
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(own["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(own[ORIGINAL])


def _explained(factors: Tensor, plain: Mapping[str, Any], size: int, place: str) -> dict[str, Any]:
    """Parameters of Llama 3 that give these factors. transformers computes both sides of the proof.

    Raises:
        UserError: there are none.
    """
    if len(factors) == size // 2:
        for original in ORIGINALS:
            published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: original}
            parameters = {"rope_type": "llama3", **plain, "factor": float(factors.max()), **published}
            if torch.allclose(_shares(parameters, size), 1 / factors, rtol=0, atol=EXACT):
                return parameters
    raise UserError(
        f"{place}: {FACTORS} has {len(factors)} factors, from {float(factors.min()):g} to {float(factors.max()):g}, which no"
        f" rope_type=llama3 of heads of {size} gives (low_freq_factor=1, high_freq_factor=4)"
    )


def _shares(parameters: Mapping[str, Any], size: int) -> Tensor:
    """What scaling leaves of each frequency, float32 [size / 2]."""
    plain = {"rope_type": "linear", "rope_theta": parameters["rope_theta"], "factor": 1.0}
    return _frequencies(parameters, size) / _frequencies(plain, size)


def _frequencies(parameters: Mapping[str, Any], size: int) -> Tensor:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=size, max_position_embeddings=2**30, rope_parameters=dict(parameters))
    found, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    return found
