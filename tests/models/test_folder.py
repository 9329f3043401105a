"""What a model folder says of itself is read before anything is loaded: context, format of its weights, kind of network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models.architectures import refuse_architecture
from sqbench.models.folder import CONTEXTS, INNER, context_of
from sqbench.models.text_sources import describe, from_hub_or_folder

UP = "model.layers.1.mlp.up_proj"


def cfg(name: str, **options: Any) -> ModelConfig:
    return ModelConfig(name=name, loader="hf", **options)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "m"))


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@given(st.sampled_from(CONTEXTS), st.integers(1, 10**6), st.sampled_from((None, *INNER)))
def test_a_context_is_found_under_each_of_its_names(name: str, length: int, inside: str | None) -> None:
    config = {name: length, "hidden_size": 64}
    assert context_of(config if inside is None else {"model_type": "x", inside: config}) == length


@pytest.mark.parametrize("said", [{}, {"n_positions": None}, {"max_position_embeddings": -1}, {"vision_config": {"n_ctx": 3}}])
def test_a_context_that_is_not_said(said: dict[str, Any]) -> None:
    assert context_of(said) is None


QUANTIZED: dict[str, dict[str, Any]] = {
    r"compressed-tensors, format=int-quantized \(quantization_config in config\.json\)": {
        "quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}
    },
    r"gptq, bits=4 \(quantization_config in": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    r"fp8 \(text_config\.quantization_config in": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    r"bits=4 \(quantization in": {"quantization": {"group_size": 64, "bits": 4}},
    r"unnamed format \(quantization_config in": {"quantization_config": {"group_size": 64}},
    r"format=int8 \(quantization_config in": {"quantization_config": "int8"},
}


@pytest.mark.parametrize("message", QUANTIZED)
def test_a_configuration_that_names_a_quantized_format_is_refused(message: str, folder: Path) -> None:
    configured(folder, **QUANTIZED[message])
    with pytest.raises(
        UserError,
        match=rf"^model\.name=some: its weights are quantized already: {message}.*; use model=checkpoint, or its float model",
    ):
        describe(folder, cfg("some"))


@pytest.mark.parametrize("nothing", [None, {}, False])
def test_an_empty_entry_is_no_format(nothing: object, folder: Path) -> None:
    configured(folder, quantization_config=nothing)
    assert describe(folder, cfg("some")).context == 128


@pytest.mark.parametrize(
    ("file", "format"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")]
)
def test_a_file_that_names_a_quantized_format_is_refused(file: str, format: str, folder: Path) -> None:
    (folder / file).write_text("{}")
    with pytest.raises(UserError, match=rf"quantized already: {format}.* \({file} beside config\.json\)"):
        describe(folder, cfg("some"))


@pytest.mark.parametrize(
    ("tensor", "dtype", "format"),
    [
        (f"{UP}.qweight", torch.int32, "GPTQ or AWQ"),
        (f"{UP}.weight_packed", torch.int32, "compressed-tensors"),
        (f"{UP}.weight_scale", torch.float32, "compressed-tensors or ModelOpt"),
        (f"{UP}.weight_scale_inv", torch.float32, "float8 in blocks"),
        (f"{UP}.SCB", torch.float32, "bitsandbytes"),
        (f"{UP}.weight.absmax", torch.float32, "bitsandbytes"),
        (f"{UP}.weight:qdata", torch.int8, "torchao"),
        (f"{UP}.weight", torch.int8, "I8"),
        (f"{UP}.weight", torch.uint8, "U8"),
        (f"{UP}.weight", torch.float8_e4m3fn, "F8_E4M3"),
        (f"{UP}.packed", torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_tensors_of_a_quantized_format_are_refused(tensor: str, dtype: torch.dtype, format: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), tensor: torch.zeros(2, 2).to(dtype)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"quantized already: {format} \(the tensor {tensor}\)"):
        describe(folder, cfg("some"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_and_masks_are_no_format(dtype: torch.dtype, folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file({**tensors, "model.layers.0.self_attn.bias": torch.ones(4, 4, dtype=torch.uint8)}, file, {"format": "pt"})
    assert describe(folder, cfg("some")).fingerprint


def test_what_else_is_no_folder_of_float_weights(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.name=a/b-Q4_K_M\.gguf: is a GGUF file; use model=checkpoint, or a Hugging Face folder"
    ):
        from_hub_or_folder(cfg("a/b-Q4_K_M.gguf"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config\.json\); use the model that it is merged into"):
        describe(folder, cfg("some"))
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-Q4.gguf")
    with pytest.raises(UserError, match=r"has no \*\.safetensors \(GGUF files are read by model=checkpoint\)"):
        describe(folder, cfg("some"))
    (folder / "model-Q4.gguf").rename(folder / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        describe(folder, cfg("some"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BERT": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        r"BertForMaskedLM is an encoder, whose predictions see later tokens; use a causal language model .*, or is_decoder=true",
    ),
    "BERT as a decoder that is none": (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        "BertLMHeadModel is an encoder",
    ),
    "ModernBERT": (
        {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]},
        r"ModernBertForMaskedLM is an encoder, .*$",
    ),
    "nothing but a family": ({"model_type": "roberta"}, "roberta is an encoder"),
    "T5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "T5ForConditionalGeneration is an encoder-decoder",
    ),
    "a vision transformer": (
        {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
        r"ViTForImageClassification \(model_type=vit\) is no causal language model that transformers [\d.]+ knows",
    ),
    "a slip": ({"model_type": "lama"}, r"lama \(model_type=lama\) is no causal .* knows; did you mean llama"),
    "its own code": (
        {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
        r"MineForCausalLM brings its own code; use model\.trust_remote_code=true",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_networks_are_refused_by_name_in_one_line(what: str) -> None:
    config, message = REFUSED[what]
    with pytest.raises(UserError, match=rf"^model\.name=m: {message}") as refused:
        refuse_architecture(config, False, "model.name=m")
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "auto_map": {"AutoModelForCausalLM": "m.M"}},
        {"model_type": "gpt2"},
    ],
)
def test_causal_language_models_are_not(config: dict[str, Any]) -> None:
    refuse_architecture(config, False, "model.name=m")


def test_own_code_that_is_trusted_is_not() -> None:
    refuse_architecture({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, True, "model.name=m")
