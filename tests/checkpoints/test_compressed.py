"""Checkpoints of compressed-tensors: what is read equals what that package decompresses, and our own rounding under its rules."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints.examples import Tensors, by_compressed_tensors, rewritten
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.errors import UserError
from sqbench.exports.hugging_face import unpacked_weights
from sqbench.formats.codec import decode, encode
from sqbench.formats.named import schemes
from sqbench.formats.tools import as_tool

# Preset -> changes of its weights that make it fit the tiny model, and the scheme that it is here.
PRESETS = {
    "W8A8": ({}, "w8a8_dynamic"),
    "W4A16": ({"group_size": 64}, "w4a16_g64_sym"),
    "W4A16_ASYM": ({"group_size": 64}, "w4a16"),
    "W3A16": ({"group_size": 64, "symmetric": False}, "w3a16"),
    "FP8": ({}, "fp8"),
    "FP8_DYNAMIC": ({}, "fp8_dynamic"),
    "NVFP4A16": ({}, "nvfp4a16"),
    "NVFP4": ({}, "nvfp4"),
    "MXFP4A16": ({}, "mxfp4a16"),
    "MXFP8": ({}, "mxfp8"),
}


GROUPS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}


@pytest.fixture(scope="module", params=PRESETS)
def made(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("quantized") / request.param
    return request.param, by_compressed_tensors(tiny_folder, folder, request.param, **PRESETS[request.param][0])


def read(folder: Path) -> QuantizedFolder:
    return QuantizedFolder.of(folder, "model.name=x")


def test_codes_are_those_of_our_own_rounding_under_its_rules(made: tuple[str, Path], tiny_folder: Path) -> None:
    preset, folder = made
    found, floats = read(folder), load_file(tiny_folder / "model.safetensors")
    scheme = schemes()[PRESETS[preset][1]]
    assert found.scheme.name == scheme.name
    fmt = as_tool(scheme, "compressed-tensors").weights
    assert fmt is not None
    assert len(found.layers) == 14
    for layer, one in found.layers.items():
        stored = one.encoded(found.read)
        ours = encode(floats[f"{layer}.weight"], fmt)
        assert torch.equal(stored.codes, ours.codes), layer
        assert torch.equal(decode(stored), decode(ours)), layer


def test_a_model_is_loaded_and_computes(made: tuple[str, Path]) -> None:
    preset, folder = made
    model = read(folder).load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")
    with torch.no_grad():
        assert model.forward(model.example()).isfinite().all()
    assert model.report["layers"] == 14
    assert {entry["format"] for entry in model.report["per_layer"]} == {str(read(folder).scheme.weights)}
    weights = model.report["weights"]
    kept = sum(parameter.numel() for name, parameter in model.module.named_parameters() if "proj" not in name)
    bits = 8 * (model.stored_bytes - 4 * kept) / weights
    assert bits < {"W8": 8.6, "FP": 8.6, "MXFP8": 8.6, "NV": 4.6, "MXFP4A16": 4.3, "W4": 4.7, "W3": 3.7}.get(preset[:2], 8.6)


def test_unpacking_is_that_of_the_package(made: tuple[str, Path]) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    preset, folder = made
    if preset.startswith("MX"):
        pytest.skip("the package computes these in bfloat16")
    found, tensors = read(folder), load_file(folder / "model.safetensors")
    told = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    (scheme,) = told.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(told.format)
    for layer, one in found.layers.items():
        local = {name.removeprefix(f"{layer}."): tensors[name] for name in one.names}
        theirs = compressor.decompress(local, scheme)["weight"]
        assert torch.equal(decode(one.encoded(found.read)).to(theirs.dtype), theirs), layer


def test_the_last_blocks_may_have_fewer_rows(tiny_folder: Path, tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    rows, columns = 48, 64
    scheme = preset_name_to_scheme("FP8_BLOCK", ["Linear"])
    scheme.weights.block_structure, scheme.input_activations.group_size = [rows, columns], columns
    told = QuantizationConfig(config_groups={"group_0": scheme}, format="float-quantized", ignore=["lm_head"]).to_dict()

    def change(layer: str, weight: Tensor) -> Tensors:
        scale = torch.rand(-(-len(weight) // rows), weight.shape[1] // columns) + 0.5
        return {"weight": (weight * 100).to(torch.float8_e4m3fn), "weight_scale": scale}

    found = read(rewritten(tiny_folder, tmp_path / "q", json.loads(json.dumps(told, default=str)), change))
    theirs = unpacked_weights(found)
    assert {weight.shape[0] % rows > 0 for weight in theirs.values()} == {True, False}
    for layer, one in found.layers.items():
        assert torch.equal(decode(one.encoded(found.read)), theirs[layer].float()), layer


def changed(folder: Path, tmp_path: Path, **config: object) -> Path:
    """A copy of a quantized folder with other entries in its quantization_config."""
    import shutil

    other = tmp_path / "changed"
    shutil.copytree(folder, other)
    told = json.loads((other / "config.json").read_text())
    told["quantization_config"] |= config
    (other / "config.json").write_text(json.dumps(told))
    return other


@pytest.fixture(scope="module")
def w4(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_compressed_tensors(tiny_folder, tmp_path_factory.mktemp("bad") / "w4", "W4A16", group_size=64)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"quant_method": "bitsandbytes"},
            r"quant_method=bitsandbytes .*: compressed-tensors, gptq, awq|quant_method=bitsandbytes",
        ),
        ({"kv_cache_scheme": {"num_bits": 8}}, r"its quantization_config has kv_cache_scheme"),
        ({"transform_config": {"config_groups": {"u": 1}}}, r"its quantization_config has transform_config"),
        ({"config_groups": {"group_0": {"targets": ["re:.*down.*"], "weights": GROUPS}}}, r"no config_groups .* names it"),
    ],
)
def test_what_is_not_read_is_refused_by_name(w4: Path, tmp_path: Path, config: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(changed(w4, tmp_path, **config))


def test_a_group_size_that_does_not_fit_is_named_with_both_shapes(w4: Path, tmp_path: Path) -> None:
    other = changed(w4, tmp_path, config_groups={"group_0": {"targets": ["Linear"], "weights": {**GROUPS, "group_size": 32}}})
    words = r"model\.layers\.0\.mlp\.down_proj has scales \[64, 3\], and int4 sym group 32 of a weight \[64, 192\] needs \[64, 6\]"
    with pytest.raises(UserError, match=words):
        read(other)


def test_missing_and_foreign_tensors_are_named(w4: Path, tmp_path: Path) -> None:
    other = changed(w4, tmp_path)
    tensors = load_file(other / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file({**tensors, "model.normal.weight": norm}, other / "model.safetensors")
    with pytest.raises(
        UserError, match=r"1 tensors missing \(model\.norm\.weight\); 1 tensors unexpected \(model\.normal\.weight\)"
    ):
        read(other).load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def test_codes_without_a_scale_are_named(w4: Path, tmp_path: Path) -> None:
    other = changed(w4, tmp_path)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors are neither floats nor of a quantized layer \(model\.norm\.weight\)"):
        read(other)


def test_an_index_that_leads_out_of_the_folder_is_refused(w4: Path, tmp_path: Path) -> None:
    other = changed(w4, tmp_path)
    (other / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"are said to be in \.\./elsewhere\.safetensors, which is outside of its folder"):
        read(other)


def test_a_scale_that_is_not_finite_is_named(w4: Path, tmp_path: Path) -> None:
    other = changed(w4, tmp_path)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
    tensors[name][0, 0] = torch.inf
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(UserError, match=name.removesuffix(".weight_scale")):
        read(other).load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def test_a_float_folder_is_sent_elsewhere(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"says nothing of quantization; use model=hf"):
        read(tiny_folder)
