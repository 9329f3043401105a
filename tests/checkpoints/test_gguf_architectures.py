"""Architectures of GGUF files: the model is the one that transformers makes of the same file, and that the file was made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.gguf_files import all_of, written
from gguf import GGMLQuantizationType as Kind
from gguf import RopeScalingType
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.llama import save_byte_tokenizer
from sqbench.checkpoints.gguf import GGUFFile
from sqbench.checkpoints.source import locate
from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.formats.codec import decode
from sqbench.models.language import LanguageModel

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
CASES: Mapping[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "mistral": {"head_dim": 64, "sliding_window": None},
    "phi3": {"pad_token_id": 0},
    "gemma2": {"head_dim": 256, "sliding_window": 32},
    "gemma3_text": {"head_dim": 256, "num_hidden_layers": 6, "sliding_window": 32, **SMALL},
}
LENGTH = 96
LINEAR = {"add_rope_scaling_type": (RopeScalingType.LINEAR,), "add_rope_scaling_factor": (8.0,)}  # as in Gemma 3 4B


# What transformers does not read of a file, with a value for which it would compute something else.
REFUSED = [
    ("gemma2", {"head_dim": 256}, {"add_attn_logit_softcapping": (30.0,)}, r"attn_logit_softcapping=30\.0, and"),
    ("gemma3_text", {"head_dim": 128}, {}, r"gemma3\.attention\.key_length=128, and transformers computes as for 256"),
    ("gemma3_text", {"head_dim": 256}, {"add_rope_freq_base_swa": (2e4,)}, r"gemma3\.rope\.freq_base_swa=20000\.0, and"),
    ("gemma3_text", {"head_dim": 256}, {"add_sliding_window_pattern": (2,)}, r"sliding_window_pattern=2, and"),
    (
        "phi3",
        {"pad_token_id": 0},
        {"add_rope_dimension_count": (48,)},
        r"rope\.dimension_count=48, and transformers rotates 64 of 64",
    ),
    ("qwen2", {}, {"add_rope_dimension_count": (32,)}, r"rope\.dimension_count=32, and transformers rotates 64 of 64"),
]


def random(kind: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain = {"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(kind, **{**sizes, **plain, "tie_word_embeddings": kind.startswith("gemma"), **more})
    module: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in module.parameters():
        parameter.data.mul_(4) if parameter.dim() == 2 else parameter.data.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(False)


def load(file: Path) -> LanguageModel:
    return GGUFFile.of(file, "x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


@torch.no_grad()
@pytest.mark.parametrize("kind", CASES)
def test_the_model_is_that_of_transformers_and_the_one_that_was_written(kind: str, tmp_path: Path) -> None:
    module = random(kind, **CASES[kind])
    file = written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0))
    ours = load(file)
    ids = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    logits = ours.forward(ids)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    assert torch.equal(logits, theirs(input_ids=ids).logits)
    found = GGUFFile.of(file, "x")
    for name, one in found.layers.items():
        module.get_parameter(f"{name}.weight").copy_(decode(one.encoded(found.read)))
    assert torch.allclose(logits, module(input_ids=ids).logits, rtol=1e-4, atol=1e-4 * float(logits.std()))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in CASES), ("gemma3_text", LINEAR)])
def test_llama_cpp_computes_the_same_of_the_file(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")

    def one(name: str, values: Any) -> tuple[Kind, Any]:
        """A single quantized matrix, because llama.cpp rounds the inputs of those to 8 bits."""
        return all_of(Kind.Q8_0)(name, values) if name == "blk.1.ffn_down.weight" else (Kind.F32, values)

    file = written(random(kind, **CASES[kind]), tmp_path / "model.gguf", one, more, merge=True)
    ids = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    runtime = llama_cpp.Llama(str(file), n_ctx=LENGTH, n_batch=LENGTH, logits_all=True, verbose=False)
    runtime.eval(ids[0].tolist())
    logits = load(file).forward(ids)[0]
    assert (torch.tensor(runtime.scores[:LENGTH]) - logits).pow(2).mean().sqrt() < 0.03 * logits.std()


def test_the_size_of_heads_is_read_for_all_architectures(tmp_path: Path) -> None:
    file = written(random("qwen3", head_dim=32), tmp_path / "model.gguf", all_of(Kind.Q8_0))  # transformers would take 128
    assert load(file).module.config.head_dim == 32


@pytest.mark.parametrize(("kind", "config", "more", "words"), REFUSED)
def test_what_transformers_takes_for_granted_is_refused_if_a_file_says_otherwise(
    kind: str, config: dict[str, Any], more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    module = random(kind, **config, num_hidden_layers=1)
    with pytest.raises(UserError, match=words):
        GGUFFile.of(written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0), more), "x")


def test_a_name_in_the_file_adds_no_window(tmp_path: Path) -> None:
    module = random("mistral", head_dim=64, sliding_window=None)
    named = {"add_name": ("mistral",)}  # by which transformers takes MistralForCausalLM with a window of 4096
    ours = load(written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0), named))
    assert ours.module.config.model_type == "mistral"
    assert ours.module.config.sliding_window is None


def test_a_window_of_phi_3_is_passed_over_as_llama_cpp_does(tmp_path: Path) -> None:
    module = random("phi3", pad_token_id=0, sliding_window=32)
    assert load(written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0))).module.config.sliding_window is None


@pytest.mark.parametrize(("kind", "accepted"), [("mistral", True), ("qwen2", False)])
def test_a_parent_of_the_same_computation_is_accepted_whatever_transformers_calls_it(
    kind: str, accepted: bool, tmp_path: Path
) -> None:
    file = written(random("mistral", head_dim=64, sliding_window=None), tmp_path / "model.gguf", all_of(Kind.Q8_0))
    parent = tmp_path / "parent"
    random(kind).save_pretrained(parent)
    save_byte_tokenizer(parent)
    cfg = ModelConfig(name=str(file), loader="checkpoint", parent=str(parent))
    if accepted:
        assert locate(cfg).quantized is not None
        return
    with pytest.raises(UserError, match=r"has model_type=qwen2, and model\.name=.*model\.gguf has llama"):
        locate(cfg)
