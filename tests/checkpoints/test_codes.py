"""The layout of codes: what goes in comes out bit by bit, and what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqbench.checkpoints.codes import write
from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.errors import UserError
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel
from sqbench.quant.access import weight_of

FORMATS = {
    "int8": Format(8, granularity="channel", scale=Scale("float16")),
    "int4 with a minimum": Format(4, False, "group", 32, zero_point="minimum"),
    "int4": Format(4, False, "group", 32, range="own", shift="before"),
    "fp8": Format(8, granularity="channel", element="e4m3"),
    "nf4": Format(4, granularity="group", group_size=32, element="nf4"),
}


@torch.no_grad()
def written(tiny: LanguageModel, folder: Path, fmt: Format) -> dict[str, Any]:
    weights = {name: encode(weight_of(tiny.module.get_submodule(name)), fmt) for name in tiny.topology.layers}
    folder.mkdir()
    write(share(tiny.module), tiny.tokenizer, weights, folder)
    return weights


@pytest.mark.parametrize("name", FORMATS)
def test_codes_come_back_as_they_are(name: str, tiny: LanguageModel, tmp_path: Path) -> None:
    weights = written(tiny, tmp_path / "out", FORMATS[name])
    found = QuantizedFolder.of(tmp_path / "out", "place")
    for layer, one in weights.items():
        read = found.layers[layer].encoded(found.read)
        assert read.format == one.format
        for part in ("codes", "scale", "zero_point"):
            assert torch.equal(getattr(read, part), getattr(one, part))
    model = found.load(torch.device("cpu"), name="read", fingerprint="read", dtype="float32")
    assert sorted(model.topology.layers) == sorted(tiny.topology.layers)
    assert torch.equal(model.module.model.norm.weight, tiny.module.model.norm.weight)


def _without(tensors: dict[str, Any], told: dict[str, Any], layer: str) -> None:
    del tensors[f"{layer}.scale"]


def _narrow(tensors: dict[str, Any], told: dict[str, Any], layer: str) -> None:
    tensors[f"{layer}.scale"] = tensors[f"{layer}.scale"][1:].contiguous()


def _strange(tensors: dict[str, Any], told: dict[str, Any], layer: str) -> None:
    told[layer]["colour"] = "red"


def _activation(tensors: dict[str, Any], told: dict[str, Any], layer: str) -> None:
    told[layer]["dynamic"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"place: model\.layers\.0\S+ is said to be quantized, and \S+scale is in no file"),
        (_narrow, r"place: model\.layers\.0\S+ has scales \[63, 1\] and zero-points \[64, 1\]"),
        (_strange, r"place: model\.layers\.0\S+ has a format that sqbench does not read"),
        (_activation, r"place: model\.layers\.0\S+dynamic=True: must be false"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[..., None], message: str, tiny: LanguageModel, tmp_path: Path) -> None:
    written(tiny, tmp_path / "out", FORMATS["int8"])
    file, config = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    tensors, told = load_file(file), json.loads(config.read_text())
    change(tensors, told["quantization_config"]["formats"], "model.layers.0.self_attn.q_proj")
    save_file(tensors, file)
    config.write_text(json.dumps(told))
    with pytest.raises(UserError, match=message):
        QuantizedFolder.of(tmp_path / "out", "place")
