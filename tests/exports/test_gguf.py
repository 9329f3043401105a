"""GGUF exports: what is written is read back, by sqbench, by transformers and by llama.cpp, and computes the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sqbench import api
from sqbench.checkpoints.gguf import GGUFFile
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation.perplexity import perplexity
from sqbench.exports.gguf import FILE
from sqbench.exports.gguf_tokenizer import cut_by
from sqbench.exports.llama_cpp import prove
from sqbench.exports.targets import save
from sqbench.formats.codec import encode
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Encoded, QuantLayer

Quantize = Callable[..., LanguageModel]


def again(folder: Path) -> LanguageModel:
    found = GGUFFile.of(folder / FILE, "x")
    return found.load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def parts(model: LanguageModel) -> dict[str, Encoded]:
    return {name: module for name, module in model.module.named_modules() if isinstance(module, Encoded)}


CASES = {"q4_0": "rtn", "q4_1": "awq", "q5_0": "smoothquant", "q5_1": "awq", "q8_0": "rtn", "mxfp4a16": "rtn"}


@pytest.mark.parametrize("embedding", [None, "q8_0"])
@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_keeps_codes_and_metrics(
    quantize: Quantize, windows: Windows, name: str, embedding: str | None, tmp_path: Path
) -> None:
    scheme = replace(schemes()[name], embedding=embedding and schemes()[embedding].weights)
    model = quantize(scheme, CASES[name])
    save(model, tmp_path / "out", format="gguf", card="# mine")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", FILE]
    back = again(tmp_path / "out")
    ours, theirs = parts(model), parts(back)
    assert ours.keys() == theirs.keys()
    assert ("model.embed_tokens" in ours) == (embedding is not None)
    for layer, module in ours.items():
        assert torch.equal(module.encoded.codes, theirs[layer].encoded.codes), layer
        assert torch.equal(module.encoded.scale, theirs[layer].encoded.scale), layer
        assert torch.equal(module.encoded.zero_point, theirs[layer].encoded.zero_point), layer
    assert GGUFFile.of(tmp_path / "out" / FILE, "x").scheme.name == ("mxfp4" if name == "mxfp4a16" else name)
    assert back.stored_bytes == model.stored_bytes
    assert perplexity(back, windows).metrics == perplexity(model, windows).metrics


def test_gptq_chooses_codes_of_these_formats_too(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    statistics = api.calibrate(tiny, windows.calibration[:4], needs=["gram"])
    for name in ("q4_0", "q4_1"):
        model = api.quantize(tiny, statistics, "gptq", schemes()[name])
        save(model, tmp_path / name, format="gguf")
        assert perplexity(again(tmp_path / name), windows).metrics == perplexity(model, windows).metrics


def test_transformers_predicts_the_same(
    quantize: Quantize, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqbench.exports.llama_cpp.find_spec", lambda name: None)
    model = quantize(schemes()["q4_0"])
    save(model, tmp_path / "out", format="gguf")
    proof = prove(model, tmp_path / "out", windows)
    assert "transformers" in proof.program
    assert "llama-cpp-python is not installed" in proof.program
    assert proof.largest == 0
    assert proof.agreement == 1


def test_llama_cpp_predicts_nearly_the_same(quantize: Quantize, windows: Windows, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:-1]  # it loads no tokenizer without merges
    bytes_ = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, "th"])}, [("t", "h")]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    without = quantize(schemes()["q8_0"])
    save(without, tmp_path / "without", format="gguf")
    with pytest.raises(UserError, match=r"is written, and llama\.cpp cannot load it"):
        prove(without, tmp_path / "without", windows)
    model = replace(without, tokenizer=PreTrainedTokenizerFast(tokenizer_object=bytes_))
    save(model, tmp_path / "out", format="gguf")
    proof = prove(model, tmp_path / "out", windows)
    assert "llama.cpp" in proof.program
    ours = perplexity(model, windows).metrics["perplexity"]  # it rounds inputs to 8 bits, and the model has loud channels
    assert proof.metrics["perplexity"] == pytest.approx(ours, rel=0.1)
    assert proof.agreement > 0.8


def test_qwen2_keeps_its_biases_and_the_order_of_its_rows(tiny: LanguageModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False}
    module = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, bos_token_id=None, eos_token_id=None)).eval().requires_grad_(False)
    fmt = schemes()["q4_0"].weights
    assert fmt is not None
    for name, layer in list(module.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            if layer.bias is not None:
                layer.bias.uniform_(-1, 1)
            module.set_submodule(name, QuantLayer(layer, encode(layer.weight.detach(), fmt), None))
    model = LanguageModel(module, "qwen", "qwen", tokenizer=tiny.tokenizer)
    save(model, tmp_path / "out", format="gguf")
    with torch.no_grad():
        assert torch.equal(again(tmp_path / "out").forward(model.example()), model.forward(model.example()))


def test_what_was_read_is_written_byte_for_byte(quantize: Quantize, tmp_path: Path) -> None:
    save(quantize(schemes()["q4_1"]), tmp_path / "first", format="gguf")
    save(again(tmp_path / "first"), tmp_path / "second", format="gguf")
    assert (tmp_path / "first" / FILE).read_bytes() == (tmp_path / "second" / FILE).read_bytes()


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (schemes()["w4a16"], r"q_proj has group_size=64 in int4 asym group 64, which cannot be written; use 32, as in bits=q4_1"),
        (
            schemes()["w4a16_g32_sym"],
            r"has scale\.dtype=float32 in .*; use float16, as in bits=q4_0 \(there are q4_0, .*mxfp4a16\)",
        ),
        (schemes()["w4a16_g32"], r"has zero_point=integer in .*; use minimum, as in bits=q4_1"),
        (schemes()["w3a16"], r"has bits=3 in"),
        (schemes()["nf4"], r"has element=nf4 in"),
        (schemes()["w8a8_dynamic"], r"has rounded inputs, which llama\.cpp rounds by rules of its own; use bits=q4_0"),
        (replace(schemes()["q8_0"], embedding=schemes()["w8a16"].weights), r"embed_tokens has granularity=channel in"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_layer_and_field(
    quantize: Quantize, scheme: Scheme, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        save(quantize(scheme), tmp_path / "out", format="gguf")
    assert list(tmp_path.iterdir()) == []


LLAMA_3 = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "opt"}, r"tiny is of the architecture opt: known: llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, r"has hidden_act=gelu, which is not written; must be silu"),
        ({"model_type": "mistral", "sliding_window": 4096}, r"has sliding_window=4096, which is not written; must be None"),
        ({"attention_bias": True}, r"has attention_bias=True, which is not written; must be False"),
        (rope("dynamic", factor=2.0), r"has rope_type=dynamic: known: default, linear, llama3, yarn"),
        (
            {"model_type": "qwen2", **rope("llama3", **LLAMA_3)},
            r"has rope_type=llama3: known: default, linear, yarn",
        ),
        (rope("yarn", factor=2.0, attention_factor=1.0), r"has attention_factor=1\.0 in rope_parameters, which is not written"),
        (rope("llama3", **LLAMA_3, partial_rotary_factor=0.5), r"has partial_rotary_factor=0\.5 in rope_parameters"),
        (rope("default", partial_rotary_factor=0.5), r"has partial_rotary_factor=0\.5 in rope_parameters, which is not written"),
    ],
)
def test_another_architecture_is_refused(
    quantize: Quantize, change: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantize(schemes()["q8_0"])
    told = model.module.config.to_dict()
    monkeypatch.setattr(LlamaConfig, "to_dict", lambda config: {**told, **change})
    with pytest.raises(UserError, match=words):
        save(model, tmp_path / "out", format="gguf")


def trained(pre: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 tokens and some merges that was trained on a sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat, that 1984 and 2001 that's the thing"] * 9, trainer)
    tokenizer.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


def test_a_tokenizer_with_merges_and_special_tokens_comes_back(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    from sqbench.exports.gguf_tokenizer import add_tokenizer

    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    writer = GGUFWriter(None, "llama")
    add_tokenizer(writer, tokenizer, len(tokenizer) + 3)
    writer.write_header_to_file(tmp_path / "some.gguf")
    writer.write_kv_data_to_file()
    writer.close()
    back = AutoTokenizer.from_pretrained(tmp_path, gguf_file="some.gguf")
    for text in ("the cat that's there", "<|end|><think>in 1984", "  ümlaut\n\n"):
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert back.eos_token == "<|end|>"


def test_a_way_to_cut_text_has_llama_cpps_name() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    def told(pre: Any) -> Any:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        return json.loads(tokenizer.to_str())["pre_tokenizer"]

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert cut_by(told(whole)) == "gpt-2"
    assert cut_by(told(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]))) == "smollm"
    for name in ("llama-bpe", "qwen2"):
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
        assert cut_by(told(pre_tokenizers.Sequence([split, cut]))) == name
    for other in (pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True), cut):
        with pytest.raises(UserError, match=r"cuts text by .*for which llama\.cpp has no name"):
            cut_by(told(other))
    with pytest.raises(UserError, match=r"cuts text by null"):
        cut_by(None)
