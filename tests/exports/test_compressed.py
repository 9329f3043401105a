"""Exports: what is written is read back, by sqbench and by transformers, and computes the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sqbench import api
from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation.perplexity import perplexity
from sqbench.exports.hugging_face import prove
from sqbench.exports.targets import save
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import as_tool
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import QuantLayer

TOOL = "compressed-tensors"
Quantize = Callable[..., LanguageModel]


def under(name: str) -> Scheme:
    """A scheme that the layout can express."""
    return as_tool(schemes()[name], TOOL)


def again(folder: Path) -> LanguageModel:
    return QuantizedFolder.of(folder, "x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


CASES = {
    "w4a16": "rtn",
    "w4a16_g64_sym": "awq",
    "w3a16": "rtn",
    "w8a16": "rtn",
    "w4a16_channel": "rtn",
    "w8a8_dynamic": "smoothquant",
    "w8a8": "minmax",
    "fp8": "rtn",
    "fp8a16": "rtn",
    "w4a8": "rtn",
    "fp8_dynamic": "rtn",
    "nvfp4a16": "rtn",
    "nvfp4": "rtn",
    "mxfp4a16": "rtn",
    "mxfp8": "rtn",
}


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_keeps_codes_and_metrics(quantize: Quantize, windows: Windows, name: str, tmp_path: Path) -> None:
    model = quantize(under(name), CASES[name])
    save(model, tmp_path / "out")
    back = again(tmp_path / "out")
    ours = {layer: module for layer, module in model.module.named_modules() if isinstance(module, QuantLayer)}
    theirs = {layer: module for layer, module in back.module.named_modules() if isinstance(module, QuantLayer)}
    assert ours.keys() == theirs.keys()
    for layer, module in ours.items():
        assert torch.equal(module.encoded.codes, theirs[layer].encoded.codes), layer
        assert torch.equal(module.encoded.scale, theirs[layer].encoded.scale), layer
        assert torch.equal(module.encoded.zero_point, theirs[layer].encoded.zero_point), layer
    assert back.stored_bytes == model.stored_bytes
    assert perplexity(back, windows).metrics == perplexity(model, windows).metrics


@pytest.mark.parametrize("name", ["w4a16_g64_sym", "w4a16", "w8a8_dynamic", "w8a8", "w4a8", "fp8_dynamic", "fp8", "fp8a16"])
def test_another_program_predicts_the_same(quantize: Quantize, windows: Windows, name: str, tmp_path: Path) -> None:
    model = quantize(under(name))
    save(model, tmp_path / "out")
    proof = prove(model, tmp_path / "out", windows)
    assert proof.largest <= 1e-4 * proof.scale
    assert proof.agreement > 0.999
    assert abs(proof.change["perplexity"]["value"]) < 1e-4
    assert ("alone" in proof.program) == (name == "w4a16")  # transformers cannot load packed zero-points


def test_nothing_but_the_weights_differs_from_the_float_folder(quantize: Quantize, tiny_folder: Path, tmp_path: Path) -> None:
    save(quantize(under("w8a8_dynamic")), tmp_path / "out", card="# mine")
    before, after = load_file(tiny_folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    kept = [name for name in before if "proj" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert {name for name in after if "proj" not in name} == set(kept)
    assert (tmp_path / "out" / "README.md").read_text() == "# mine"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_layers_of_several_widths_are_groups_by_name(quantize: Quantize, tmp_path: Path) -> None:
    scheme = replace(schemes()["w4a16"], widths=(("model.layers.0.mlp.down_proj", 8),))
    model = quantize(scheme)
    save(model, tmp_path / "out")
    back = again(tmp_path / "out")
    assert {str(module.format) for module in back.module.modules() if isinstance(module, QuantLayer)} == {
        "int4 asym group 64",
        "int8 asym group 64",
    }
    assert torch.equal(back.forward(back.example()), model.forward(model.example()))


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (
            schemes()["w8a8_dynamic"],
            r"q_proj has bits\.activations\.convention=qmax, which cannot be written; use bits\.as=compressed",
        ),
        (schemes()["nf4"], r"q_proj has bits\.weights\.element=nf4, which cannot be written; use int, e4m3 or e2m1"),
        (schemes()["nvfp4a16"], r"bits\.weights\.scale\.order=modelopt, which cannot be written; use bits\.as=compressed-tensors"),
        (replace(under("w8a16"), embedding=Format(8, granularity="channel")), r"EncodedTable, which has no place there"),
        (replace(under("w8a8"), ops="linear+matmul"), r"is rounded between layers, which has no place there; use bits\.ops=linear"),
    ],
)
def test_what_the_layout_cannot_express_is_refused_by_name(
    tiny: LanguageModel, windows: Windows, scheme: Scheme, words: str, tmp_path: Path
) -> None:
    statistics = api.calibrate(tiny, windows.calibration[:2], needs=[], points=True)
    model = api.quantize(tiny, statistics, "rtn", scheme)
    with pytest.raises(UserError, match=words):
        save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_kept(quantize: Quantize, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    model = quantize(under("w8a16"))
    with pytest.raises(UserError, match=r"is there and not empty; use another folder, or force=true to replace it"):
        save(model, out)
    assert (out / "mine").read_text() == "mine"
    save(model, out, force=True)
    assert not (out / "mine").exists()


def test_nothing_half_written_remains(quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sqbench.exports.compressed.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(quantize(under("w8a16")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny has no quantized layer"):
        save(tiny, tmp_path / "out")
