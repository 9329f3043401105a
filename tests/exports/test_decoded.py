"""Exports of decoded weights: every format of weights, proven by transformers, and read back as a float model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from cli import Ended
from encoders import as_sentence_transformer, load, save_encoder
from families import gpt2
from labs import Lab

from sqbench import api, export
from sqbench.errors import UserError
from sqbench.exports.decoded import prove
from sqbench.exports.hugging_face import loaded
from sqbench.exports.targets import save
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.heads import Neighbours, Probe
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

Command = Callable[..., Ended]
Quantize = Callable[..., LanguageModel]
CHANNEL = Format(8, granularity="channel")
NF4 = Format(4, element="nf4", granularity="group", group_size=64)


@torch.no_grad()
def same(quantized: LanguageModel, folder: Path) -> bool:
    """Whether transformers computes the very numbers of the simulation from a folder."""
    ids = quantized.example()
    return torch.equal(loaded(folder, torch.float32, quantized).forward(ids), quantized.forward(ids))


@pytest.mark.parametrize("scheme", [Scheme("a", CHANNEL), Scheme("b", NF4), Scheme("c", CHANNEL, embedding=NF4)], ids=str)
def test_transformers_computes_the_numbers_of_the_simulation(
    scheme: Scheme, quantize: Quantize, windows: object, tmp_path: Path
) -> None:
    quantized = quantize(scheme)
    save(quantized, tmp_path / "out", format="safetensors")
    assert same(quantized, tmp_path / "out")
    proof = prove(quantized, tmp_path / "out", windows)  # type: ignore[arg-type]
    assert (proof.largest, proof.agreement) == (0.0, 1.0)


def test_transposed_weights_and_one_matrix_for_embedding_and_output(tiny: LanguageModel, tmp_path: Path) -> None:
    model = replace(gpt2(), tokenizer=tiny.tokenizer)
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", Scheme("a", CHANNEL, embedding=CHANNEL))
    assert isinstance(quantized, LanguageModel)
    save(quantized, tmp_path / "out", format="safetensors")
    assert same(quantized, tmp_path / "out")


def test_a_tensor_that_the_float_model_lacks_is_refused(quantize: Quantize, tmp_path: Path) -> None:
    quantized = quantize(Scheme("a", CHANNEL))
    layer = quantized.module.get_submodule("model.layers.0.mlp.up_proj")
    layer.layer.bias = torch.nn.Parameter(torch.zeros(layer.shape[0]))
    with pytest.raises(UserError, match=r"1 tensors that the float model lacks \(model\.layers\.0\.mlp\.up_proj\.bias\)"):
        save(quantized, tmp_path / "out", format="safetensors")


def test_through_the_command_line_and_back(
    command: Command, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("method=gptq", "bits=nf4").code == 0
    (record,) = Store(results).records()
    out = tmp_path / "exported"
    assert export.main([record.point_id, f"results_dir={results}", f"out={out}", "format=safetensors"]) == 0
    assert "largest difference of an output 0 of" in capsys.readouterr().out
    assert json.loads((out / "sqbench.json").read_text())["proof"]["largest"] == 0.0
    for name in ("tokenizer.json", "config.json", "README.md", "model.safetensors"):
        assert (out / name).is_file()
    assert command(f"model.name={out}", "method=fp").code == 0
    back = next(one for one in Store(results).records() if one.point_id != record.point_id)
    assert back.metrics["perplexity"] == record.metrics["perplexity"]


def test_what_float_weights_cannot_express_is_refused(quantize: Quantize, tmp_path: Path) -> None:
    rounded = quantize(Scheme("a", CHANNEL, Format(8, granularity="token", dynamic=True)))
    with pytest.raises(UserError, match=r"format=safetensors: model\.layers\.0\.\S+ rounds its inputs, which float weights cannot"):
        save(rounded, tmp_path / "out", format="safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
@pytest.mark.parametrize("mode", ["pooling_mode_cls_token", "pooling_mode_mean_tokens"])
@torch.no_grad()
def test_an_encoder_makes_the_same_vectors_from_its_folder(family: str, mode: str, tmp_path: Path) -> None:
    model = load(as_sentence_transformer(save_encoder(tmp_path / "m", family), mode))
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", Scheme("a", NF4, embedding=CHANNEL))
    save(quantized, tmp_path / "out", format="safetensors")
    back = load(tmp_path / "out")  # without the pooler of BERT, which was not in the model
    assert back.pooling == model.pooling
    assert torch.equal(back.forward(model.example()), quantized.forward(model.example()))
    assert not torch.equal(model.forward(model.example()), quantized.forward(model.example()))


@torch.no_grad()
def test_timm_loads_a_network_with_its_size_and_its_preprocessing(vit: Lab, tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=8, in_chans=1)
    preprocessing = replace(vit.model.preprocessing, input_size=(1, 32, 32), mean=(0.25,), std=(0.5,))
    model = replace(vit.model, module=module.eval().requires_grad_(False), preprocessing=preprocessing)
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", Scheme("a", CHANNEL))
    save(quantized, tmp_path / "out", format="safetensors")
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(back(model.example()), quantized.forward(model.example()))
    found = timm.data.resolve_model_data_config(back)
    assert [list(found[name]) for name in ("input_size", "mean", "std")] == [[1, 32, 32], [0.25], [0.5]]


def test_networks_that_no_library_loads_from_a_folder_are_refused(vit: Lab, tmp_path: Path) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "rtn", Scheme("a", CHANNEL))
    with pytest.raises(UserError, match="format=safetensors: vit is no architecture of timm; use format=onnx or openvino"):
        save(quantized, tmp_path / "out", format="safetensors")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_linear_head_becomes_the_classifier_of_the_network(vit: Lab, tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0)
    preprocessing = replace(vit.model.preprocessing, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    headless = replace(vit.model, module=module.eval().requires_grad_(False), preprocessing=preprocessing, classes=0)
    model = replace(headless, head=Probe(module.num_features, 5))
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", Scheme("a", CHANNEL))
    save(quantized, tmp_path / "out", format="safetensors")
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert back.num_classes == 5
    assert torch.allclose(back(model.example()), quantized.forward(model.example()), atol=1e-6)
    voting = replace(quantized, head=Neighbours(torch.randn(9, module.num_features), torch.zeros(9, dtype=torch.long), 1))
    with pytest.raises(UserError, match="vit has a fitted head, which is no linear classifier of its network; use head=probe"):
        save(voting, tmp_path / "other", format="safetensors")


def test_a_folded_batchnorm_is_refused(vit: Lab, tmp_path: Path) -> None:
    module = timm.create_model("mobilenetv3_small_050", num_classes=8, in_chans=1)
    preprocessing = replace(vit.model.preprocessing, input_size=(1, 32, 32))
    model = replace(vit.model, module=module.eval().requires_grad_(False), preprocessing=preprocessing)
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", Scheme("a", CHANNEL))
    with pytest.raises(UserError, match=r"conv_dw\.bias.*a folded BatchNorm has them; use format=onnx or openvino"):
        save(quantized, tmp_path / "out", format="safetensors")
    assert list(tmp_path.iterdir()) == []
