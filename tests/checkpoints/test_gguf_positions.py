"""Scaled positions of GGUF files: factors as llama.cpp's converter writes them, and frequencies as transformers computes them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.gguf_files import all_of, llama, written
from gguf import GGMLQuantizationType as Kind
from gguf import RopeScalingType
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sqbench.checkpoints import gguf_positions
from sqbench.checkpoints.gguf import GGUFFile
from sqbench.errors import UserError

CONFIG = {"rope_theta": 500000.0, "head_dim": 128, "hidden_size": 4096, "num_attention_heads": 32}
TOLD = {"context_length": 128}


def converted(theta: float, size: int, factor: float, original: int, low: float = 1, high: float = 4) -> Tensor:
    """The tensor that convert_hf_to_gguf.py writes for rope_type=llama3."""
    found = []
    for place in range(0, size, 2):
        length = 2 * math.pi * theta ** (place / size)
        if length < original / high:
            found.append(1.0)
        elif length > original / low:
            found.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found)


def parameters(
    factors: Tensor | None, config: dict[str, Any] = CONFIG, told: dict[str, Any] = TOLD, architecture: str = "llama"
) -> Any:
    return gguf_positions.read(config, architecture, told, factors, "x").get("rope_parameters")


@pytest.mark.parametrize(("size", "factor"), [(128, 8.0), (64, 32.0), (128, 32.0)], ids=["3.1 and 3.3", "3.2 1B", "3.2 3B"])
def test_the_published_parameters_are_found_in_their_factors(size: int, factor: float) -> None:
    found = parameters(converted(500000.0, size, factor, 8192), {**CONFIG, "head_dim": size})
    original = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert found == {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **original}


@settings(deadline=None, max_examples=50)
@given(
    theta=st.floats(1e4, 1e7),
    size=st.sampled_from([32, 64, 96, 128, 256]),
    factor=st.floats(1.5, 100, width=32),
    original=st.sampled_from([32, 512, 4096, 16384]),
)
def test_frequencies_of_what_is_found_are_those_of_the_file(theta: float, size: int, factor: float, original: int) -> None:
    factors = converted(theta, size, factor, original)
    assume(factors.max() == torch.tensor(factor))  # else no frequency is low enough to be divided by all of it
    config = {**CONFIG, "rope_theta": theta, "head_dim": size}
    found = LlamaConfig(head_dim=size, max_position_embeddings=2**20, rope_parameters=parameters(factors, config))
    plain = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    assert torch.allclose(LlamaRotaryEmbedding(found).inv_freq / plain, 1 / factors.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("factors", "more", "architecture", "words"),
    [
        (
            converted(5e5, 128, 8.0, 8192) * 1.001,
            {},
            "llama",
            r"rope_freqs\.weight has 64 factors, from 1\.001 to 8\.008, which no",
        ),
        (converted(5e5, 64, 8.0, 8192), {}, "llama", r"has 32 factors, .* which no rope_type=llama3 of heads of 128 gives"),
        (converted(5e5, 128, 8.0, 8192, low=2), {}, "llama", r"gives \(low_freq_factor=1, high_freq_factor=4\)"),
        (converted(5e5, 128, 8.0, 8192), {}, "qwen2", r"scales the positions of qwen2; it must be Llama's alone"),
        (converted(5e5, 128, 8.0, 8192), {"rope.scaling.factor": 2.0}, "llama", r"scales the positions of llama twice"),
        (
            None,
            {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
            "llama",
            r"type=longrope of llama: known: linear, none, yarn",
        ),
        (None, {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "gemma3", r"type=yarn of gemma3: known: linear, none"),
        (None, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "phi3", r"type=linear of phi3: known: none$"),
        (None, {"rope.scaling.attn_factor": 1.2}, "llama", r"rope\.scaling\.attn_factor=1\.2 scales positions as transformers"),
        (None, {"rope.scaling.type": "none", "rope.scaling.attn_factor": 1.2}, "llama", r"attn_factor=1\.2 scales"),
        (None, {"rope.scaling.yarn_log_multiplier": 0.1}, "llama", r"yarn_log_multiplier=0\.1 scales"),
    ],
)
def test_what_no_parameters_explain_is_refused(factors: Any, more: dict[str, Any], architecture: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parameters(factors, told={**TOLD, **more}, architecture=architecture)


def scaling(**keys: Any) -> dict[str, Any]:
    return {**TOLD, **{f"rope.scaling.{key}": value for key, value in keys.items()}}


def test_keys_are_read_as_llama_cpp_reads_them() -> None:
    plain = {"rope_theta": 500000.0}
    for told in (TOLD, scaling(type="none", factor=4.0), scaling(type="linear"), scaling(factor=1.0, finetuned=True)):
        assert parameters(None, told=told) is None
    linear = {"rope_type": "linear", "factor": 4.0, **plain}
    for told in (scaling(type="linear", factor=4.0), scaling(factor=4.0), {**TOLD, "rope.scale_linear": 4.0}):
        assert parameters(None, told=told) == linear
    yarn = {"rope_type": "yarn", "factor": 4.0, **plain}
    usual = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "attn_factor": 1.0}
    told = scaling(type="yarn", factor=4.0, original_context_length=32, **usual)
    assert parameters(None, told=told) == {**yarn, "original_max_position_embeddings": 32}
    assert parameters(None, told=scaling(type="yarn", factor=4.0)) == {**yarn, "original_max_position_embeddings": 128}
    assert parameters(torch.ones(64)) is None


def test_a_file_of_llama_3_computes_what_transformers_computes_with_its_parameters(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    module = llama()
    module = LlamaForCausalLM(
        LlamaConfig(**{**module.config.to_dict(), "rope_parameters": {**rope, "original_max_position_embeddings": 32}})
    )
    module.load_state_dict(llama().state_dict())
    more = {"add_tensor": ("rope_freqs.weight", converted(1e4, 64, 8.0, 32).numpy())}
    file = written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0), more)
    ours = GGUFFile.of(file, "x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")
    assert ours.module.config.rope_parameters == module.config.rope_parameters
    ids = torch.arange(128)[None]
    blind = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)  # it passes over the tensor
    with torch.no_grad():
        logits, without = ours.forward(ids), blind.eval()(input_ids=ids).logits
        assert (logits - without).abs().max() > 0.1 * logits.std()
        blind.model.rotary_emb = type(blind.model.rotary_emb)(module.config)
        assert torch.equal(blind(input_ids=ids).logits, logits)


def test_linear_positions_of_gemma_3_are_those_of_layers_without_a_window() -> None:
    config = {"model_type": "gemma3_text", "rope_theta": 1e6, "num_hidden_layers": 6}
    found = gguf_positions.read(config, "gemma3", scaling(type="linear", factor=8.0), None, "x")
    rope = AutoConfig.for_model(**found).rope_parameters
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}


def test_a_file_with_scaled_positions_is_refused_by_its_key(tmp_path: Path) -> None:
    more = {"add_rope_scaling_type": (RopeScalingType.LONGROPE,), "add_rope_scaling_factor": (4.0,)}
    file = written(llama(), tmp_path / "model.gguf", all_of(Kind.Q8_0), more)
    with pytest.raises(UserError, match=r"model\.name=x: rope\.scaling\.type=longrope of llama: known: linear, none, yarn"):
        GGUFFile.of(file, "model.name=x")
    more = {"add_tensor": ("rope_freqs.weight", np.linspace(1, 8, 32, dtype=np.float32))}
    file = written(llama(), tmp_path / "other.gguf", all_of(Kind.Q8_0), more)
    with pytest.raises(UserError, match=r"model\.name=x: rope_freqs\.weight has 32 factors, from 1 to 8, which no"):
        GGUFFile.of(file, "model.name=x")
