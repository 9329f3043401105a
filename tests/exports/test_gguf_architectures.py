"""Architectures and scaled positions of GGUF exports: sqbench and llama.cpp compute what transformers computed."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import Ended
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sqbench import export
from sqbench.checkpoints.gguf import GGUFFile
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.exports.gguf import FILE
from sqbench.exports.llama_cpp import LlamaCpp, prove
from sqbench.exports.targets import save
from sqbench.formats.codec import encode
from sqbench.formats.named import schemes
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import QuantLayer
from sqbench.records.store import Store

LENGTH = 128
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3": ("llama", {"rope_parameters": {**LLAMA_3, "original_max_position_embeddings": 32, "rope_theta": 5e5}}),
    "llama 3 by 32, untied": (
        "llama",
        {
            "rope_parameters": {**LLAMA_3, "factor": 32.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
            "tie_word_embeddings": False,
        },
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}),
    "yarn": ("llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen 2": ("qwen2", {}),
    "qwen 2, yarn": ("qwen2", {"rope_parameters": {**YARN, "type": "yarn", "rope_theta": 1e6}}),
    "qwen 3": ("qwen3", {"head_dim": 32}),
    "qwen 3, linear": ("qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}),
}


@cache
def byte_pairs() -> PreTrainedTokenizerFast:
    """256 tokens. One is a merge, because llama.cpp loads no tokenizer without."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:-1]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, "th"])}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def random(kind: str, more: Mapping[str, Any]) -> LanguageModel:
    """A model with peaked attention, so that positions matter. One layer alone is quantized, so llama.cpp hardly rounds."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain = {"num_key_value_heads": 2, "max_position_embeddings": LENGTH, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(kind, **{**sizes, **plain, "tie_word_embeddings": True, **more})
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.mul_(10 if "embed" not in name else 40) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
    fmt = schemes()["q8_0"].weights
    assert fmt is not None
    layer = module.model.layers[1].mlp.down_proj
    module.model.layers[1].mlp.down_proj = QuantLayer(layer, encode(layer.weight.detach(), fmt), None)
    return LanguageModel(module, "random", "random", tokenizer=byte_pairs())


def words() -> Tensor:
    return torch.randint(0, 255, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def again(folder: Path) -> LanguageModel:
    return GGUFFile.of(folder / FILE, "x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_what_is_written_computes_the_same(case: str, tmp_path: Path) -> None:
    kind, more = CASES[case]
    model = random(kind, more)
    save(model, tmp_path / "out", format="gguf")
    logits = model.forward(words())
    back = again(tmp_path / "out")
    assert torch.equal(back.forward(words()), logits)
    if "rope_parameters" in more:
        told = {key: value for key, value in more["rope_parameters"].items() if key != "type"}
        assert back.module.config.rope_parameters.items() >= told.items()
        unscaled = {**more, "rope_parameters": {"rope_type": "default", "rope_theta": more["rope_parameters"]["rope_theta"]}}
        assert deviation(random(kind, unscaled).forward(words()), logits) > 0.1
    if find_spec("llama_cpp") is not None:
        theirs = LlamaCpp.of(tmp_path / "out" / FILE, model, LENGTH).forward(words())
        assert deviation(theirs, logits) < 0.01


def test_transformers_alone_cannot_prove_scaled_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqbench.exports.llama_cpp.find_spec", lambda name: None)
    model = random(*CASES["linear"])
    save(model, tmp_path / "out", format="gguf")
    with pytest.raises(UserError, match=r"is written, and transformers reads no scaled positions .*; install llama-cpp-python"):
        prove(model, tmp_path / "out", Windows(words(), words(), LENGTH, ()))


def test_a_point_of_llama_3_is_exported_and_judged_beside_its_parent(
    tiny_folder: Path, command: Callable[..., Ended], results: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny_folder, parent)
    told = json.loads((parent / "config.json").read_text())
    rope = {**LLAMA_3, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    (parent / "config.json").write_text(json.dumps({**told, "rope_parameters": rope}))
    quantized = (f"model.name={parent}", "method=rtn", "bits=q8_0")
    assert command(*quantized).code == 0
    (made,) = Store(results).records()
    out = tmp_path / "out"
    words = [made.point_id, f"results_dir={results}", f"out={out}", "format=gguf", "verify=false"]
    assert export.main(words) == 0
    ended = command("model=checkpoint", f"model.name={out}", f"model.parent={parent}")
    assert ended.code == 0, ended.err
    (judged,) = (record for record in Store(results).records() if record.point_id != made.point_id)
    assert judged.metrics == made.metrics
    assert judged.delta == made.delta


def deviation(other: Tensor, logits: Tensor) -> float:
    """Root mean square difference over that of the logits, in the second half, where positions are far."""
    late = slice(LENGTH // 2, None)
    return float((other - logits)[:, late].pow(2).mean().sqrt() / logits[:, late].std())
