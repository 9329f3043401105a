"""Exports of mixtures of experts: under the names of their float checkpoints, and proven by transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixtures import mixture, stacked
from safetensors.torch import load_file

from sqbench import api
from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.exports import compressed, decoded
from sqbench.exports.targets import save
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import as_tool
from sqbench.models.language import LanguageModel

CHANNEL = Format(8, granularity="channel")
GROUPS = Scheme("w4", Format(4, granularity="group", group_size=8))
INTEGERS = as_tool(schemes()["w8a8_dynamic"], "compressed-tensors")
NAMED = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "DeepseekV3")  # whose checkpoints have a tensor for each matrix of an expert
STACKED = ("GptOss", "GraniteMoe")


@pytest.fixture(scope="module")
def quantize(tiny: LanguageModel) -> Callable[..., LanguageModel]:
    def made(family: str, scheme: Scheme) -> LanguageModel:
        model = replace(mixture(family), tokenizer=tiny.tokenizer)
        found = api.quantize(model, api.calibrate(model, model.example()), "rtn", scheme)
        assert isinstance(found, LanguageModel)
        return found

    return made


@pytest.fixture(scope="module")
def examples(windows: Windows) -> Windows:
    """Windows of the few tokens that the small mixtures know."""
    return replace(windows, evaluation=windows.evaluation % 101)


@pytest.mark.parametrize("family", [*NAMED, *STACKED])
def test_decoded_weights_are_the_float_checkpoint(
    family: str, quantize: Callable[..., LanguageModel], examples: Windows, tmp_path: Path
) -> None:
    model = quantize(family, Scheme("w8", CHANNEL))
    save(model, tmp_path / "out", format="safetensors")
    stacked(family).module.save_pretrained(tmp_path / "float")
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "float"))
    assert {name: one.shape for name, one in ours.items()} == {name: one.shape for name, one in theirs.items()}
    proof = decoded.prove(model, tmp_path / "out", examples)
    assert proof.largest <= 1e-5 * proof.scale
    assert proof.agreement == 1


@pytest.mark.parametrize("family", NAMED)
@pytest.mark.parametrize(
    "scheme", [GROUPS, as_tool(schemes()["w8a8_dynamic"], "compressed-tensors")], ids=["w4a16", "w8a8_dynamic"]
)
def test_codes_of_experts_come_back(
    family: str, scheme: Scheme, quantize: Callable[..., LanguageModel], examples: Windows, tmp_path: Path
) -> None:
    model = quantize(family, scheme)
    save(model, tmp_path / "out", format="compressed-tensors")
    back = QuantizedFolder.of(tmp_path / "out", "x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")
    assert {one["layer"] for one in back.report["per_layer"]} == {one["layer"] for one in model.report["per_layer"]}
    with torch.no_grad():
        assert torch.equal(back.forward(back.example()), model.forward(model.example()))
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in told["ignore"]
    assert any(name.endswith(("gate", "router")) for name in told["ignore"])


def test_weights_are_unpacked_by_the_package_and_proven(
    quantize: Callable[..., LanguageModel], examples: Windows, tmp_path: Path
) -> None:
    model = quantize("Mixtral", GROUPS)
    save(model, tmp_path / "out", format="compressed-tensors")
    assert any(".block_sparse_moe.experts.3.w2." in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    proof = compressed.TARGET.prove(model, tmp_path / "out", examples)
    assert proof.largest <= 1e-5 * proof.scale


@pytest.mark.parametrize("family", STACKED)
def test_experts_without_names_are_refused(family: str, quantize: Callable[..., LanguageModel], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"experts\.0\.gate_proj has no tensor of its own .*; use format=safetensors"):
        save(quantize(family, GROUPS), tmp_path / "out", format="compressed-tensors")


@pytest.mark.parametrize("format", ["safetensors", "compressed-tensors"])
def test_a_bias_that_experts_do_not_have_is_refused(format: str, quantize: Callable[..., LanguageModel], tmp_path: Path) -> None:
    model = quantize("Mixtral", GROUPS)
    layer = model.module.get_submodule("model.layers.1.mlp.experts.2.down_proj")
    layer.layer.bias = torch.nn.Parameter(torch.zeros(layer.shape[0]))
    with pytest.raises(
        UserError, match=r"1 tensors that the float model lacks \(model\.layers\.1\.mlp\.experts\.2\.down_proj\.bias\)"
    ):
        save(model, tmp_path / "out", format=format)
