"""Folders in torchao's layout: headers by hand, and weights by torchao itself where it is installed."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.errors import UserError
from sqbench.formats.codec import decode

CONFIGS = {
    "int8": ("Int8WeightOnlyConfig", {}, "w8a16"),
    "int8 groups": ("Int8WeightOnlyConfig", {"granularity": ("PerGroup", 32)}, "int8 sym group 32"),
    "int8 dynamic": ("Int8DynamicActivationInt8WeightConfig", {}, "w8a8_dynamic"),
    "int4": ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4, "granularity": ("PerGroup", 32)}, "w4a16_g32_sym"),
    "fp8": ("Float8WeightOnlyConfig", {}, "fp8a16"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_torchao_to_the_last_bit(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao = pytest.importorskip("torchao.quantization")
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    kind, fields, scheme = CONFIGS[name]
    given = {key: getattr(ao, value[0])(*value[1:]) if isinstance(value, tuple) else value for key, value in fields.items()}
    how = TorchAoConfig(getattr(ao, kind)(**given), modules_to_not_convert=["lm_head"])
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, quantization_config=how).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    found = QuantizedFolder.of(tmp_path, "model.name=x")
    assert found.scheme.name == scheme
    assert len(found.layers) == 14
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        theirs, _ = unflatten_tensor_state_dict(load_file(tmp_path / "model.safetensors"), opened.metadata())
    for layer, one in found.layers.items():
        assert torch.equal(decode(one.encoded(found.read)), theirs[f"{layer}.weight"].dequantize()), layer
    found.load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def by_hand(source: Path, folder: Path, about: dict[str, Any], scales: tuple[int, int] = (64, 1)) -> QuantizedFolder:
    """A folder in which one weight [64, 64] is said to be a class of torchao."""
    name = "model.layers.0.self_attn.q_proj"
    tensors = load_file(source / "model.safetensors")
    tensors.pop(f"{name}.weight")
    tensors |= {f"{name}._weight_qdata": torch.ones(64, 64, dtype=torch.int8), f"{name}._weight_scale": torch.ones(scales)}
    told = {"_type": "Int8Tensor", "_tensor_data_names": ["qdata", "scale"], "_data": {"block_size": [1, 64]}}
    header = {f"{name}.weight": json.dumps({**told, **about}), "format": "pt"}
    save_file(tensors, folder / "model.safetensors", header)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    return QuantizedFolder.of(folder, "model.name=x")


def test_a_header_says_what_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    (layer,) = by_hand(tiny_folder, tmp_path, {}).layers.values()
    assert (str(layer.weight), layer.activation) == ("int8 sym channel", None)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"_type": "Int4TilePackedTo4dTensor"}, "is a Int4TilePackedTo4dTensor: must be one of Int8Tensor, Intx"),
        ({"_tensor_data_names": ["qdata", "scale", "act_pre_scale"]}, "is stored with act_pre_scale, which sqbench does not read"),
        ({"_tensor_data_names": ["qdata", "scale", "zero_point"]}, "q_proj._weight_zero_point is in no file"),
        ({"_data": {"block_size": [2, 32]}}, r"has blocks \[2, 32\] of a matrix \[64, 64\]"),
        ({"_data": {"block_size": [1, 16]}}, r"has scales \[64, 1\], and .* needs 256"),
        ({"_data": {"block_size": [1]}}, r"has blocks \[1\] of a tensor \[64, 64\]"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tiny_folder: Path, tmp_path: Path, about: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        by_hand(tiny_folder, tmp_path, about)
