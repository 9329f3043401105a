"""The layout fp8: weights are those that transformers decodes, and inputs are rounded by its rule."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.examples import Tensors, rewritten
from torch import Tensor
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.errors import UserError
from sqbench.formats.codec import decode
from sqbench.quant.layers import QuantLayer

ROWS, COLUMNS = BLOCK = (32, 64)
BLOCKS: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
WHOLE: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static"}
LARGEST = 448.0


def in_blocks(layer: str, weight: Tensor) -> Tensors:
    return in_blocks_of(ROWS, weight)


def in_blocks_of(rows: int, weight: Tensor) -> Tensors:
    scale = torch.stack([part.unflatten(1, (-1, COLUMNS)).abs().amax((0, 2)) for part in weight.split(rows)]) / LARGEST
    spread = scale.repeat_interleave(rows, 0)[: len(weight)].repeat_interleave(COLUMNS, 1)
    return {"weight": (weight / spread).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def whole(layer: str, weight: Tensor) -> Tensors:
    scale = weight.abs().amax() / LARGEST
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor([0.02])}


def made(source: Path, folder: Path, change: Callable[[str, Tensor], Tensors] = in_blocks, **config: Any) -> Path:
    return rewritten(source, folder, (BLOCKS if change is in_blocks else WHOLE) | config, change)


def read(folder: Path) -> QuantizedFolder:
    return QuantizedFolder.of(folder, "model.name=x")


def layers_of(found: QuantizedFolder) -> dict[str, QuantLayer]:
    model = found.load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")
    layers = {name: part for name, part in model.module.named_modules() if isinstance(part, QuantLayer)}
    assert len(layers) == 14
    return layers


def test_blocks_are_decoded_as_by_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    folder = made(tiny_folder, tmp_path / "q")
    found = read(folder)
    assert found.scheme.name == f"e4m3 block {ROWS}x{COLUMNS}, e4m3 group {COLUMNS} dynamic"
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    for name, layer in layers_of(found).items():
        assert torch.equal(decode(layer.encoded), theirs.get_submodule(name).weight), name


def test_the_last_blocks_may_have_fewer_rows(tiny_folder: Path, tmp_path: Path) -> None:
    """576 outputs of DeepSeek's `kv_a_proj_with_mqa` in blocks of 128."""
    config = BLOCKS | {"weight_block_size": [48, COLUMNS]}
    found = read(made(tiny_folder, tmp_path / "q", lambda layer, weight: in_blocks_of(48, weight), **config))
    uneven = set()
    for name, layer in layers_of(found).items():
        weight, scale = found.read(f"{name}.weight").float(), found.read(f"{name}.weight_scale_inv")
        rows, columns = weight.shape
        uneven.add(rows % 48 > 0)
        spread = scale.repeat_interleave(48, 0)[:rows].repeat_interleave(COLUMNS, 1)
        assert torch.equal(decode(layer.encoded), weight * spread)
        assert layer.stored_bytes() == rows * columns + 4 * scale.numel()
    assert uneven == {True, False}


def test_scales_in_half_precision_take_half_the_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    """As in the folders of Qwen3, which say nothing of `scale_fmt`."""

    def change(layer: str, weight: Tensor) -> Tensors:
        return {name: tensor.bfloat16() if "scale" in name else tensor for name, tensor in in_blocks(layer, weight).items()}

    folder = made(tiny_folder, tmp_path / "q", change, **BLOCKS)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    for name, layer in layers_of(read(folder)).items():
        assert torch.equal(decode(layer.encoded), theirs.get_submodule(name).weight), name
        assert layer.stored_bytes() == layer.encoded.codes.numel() + 2 * layer.encoded.scale.numel()


def test_inputs_of_blocks_have_a_scale_for_each_token_and_group(tiny_folder: Path, tmp_path: Path) -> None:
    layer = next(iter(layers_of(read(made(tiny_folder, tmp_path / "q"))).values()))
    assert layer.activation is not None
    x = torch.randn(2, 5, layer.layer.in_features, generator=torch.Generator().manual_seed(0))
    groups = x.unflatten(-1, (-1, COLUMNS))
    scale = groups.abs().amax(-1, keepdim=True) / LARGEST
    assert torch.equal(layer.activation(x), ((groups / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2))


def test_one_scale_for_a_matrix_and_for_its_inputs(tiny_folder: Path, tmp_path: Path) -> None:
    found = read(made(tiny_folder, tmp_path / "q", whole))
    assert found.scheme.name == "fp8"
    for name, layer in layers_of(found).items():
        weight, scale = found.read(f"{name}.weight"), found.read(f"{name}.weight_scale")
        assert torch.equal(decode(layer.encoded), weight.float() * scale)
        assert layer.activation is not None
        x = torch.linspace(-20, 20, layer.layer.in_features)[None]
        s = found.read(f"{name}.input_scale")
        assert torch.equal(layer.activation(x), (x / s).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * s)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fmt": "e5m2"}, "has fmt=e5m2, and only e4m3 is read"),
        ({"scale_fmt": "ue8m0"}, "has scale_fmt=ue8m0, which sqbench does not read"),
        ({"weight_block_size": None}, "weight_block_size=None and activation_scheme=dynamic; runtimes round such"),
        ({"activation_scheme": "static"}, r"weight_block_size=\[32, 64\] and activation_scheme=static"),
        ({"weight_block_size": [32, 48]}, "48"),
        ({"weight_block_size": 128}, "weight_block_size=128, which must be rows and columns"),
        ({"weight_block_size": [0, 64]}, r"weight_block_size=\[0, 64\], which must be rows and columns"),
    ],
)
def test_configurations_that_are_not_known_are_refused(
    config: Mapping[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(made(tiny_folder, tmp_path / "q", **config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda layer, weight: {"weight": weight, "weight_scale_inv": torch.ones(1, 1)},
            r"has scales \[1, 1\], and e4m3 block 32x64",
        ),
        (lambda layer, weight: {"weight_scale_inv": torch.ones(1, 1)}, r"is quantized, and .*\.weight is in no file"),
        (lambda layer, weight: {"weight": weight[None], "weight_scale_inv": torch.ones(1)}, r"which is no matrix"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[str, Tensor], Tensors], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(made(tiny_folder, tmp_path / "q", change, **BLOCKS))


def test_weights_of_another_dtype_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = made(tiny_folder, tmp_path / "q", lambda layer, weight: in_blocks(layer, weight) | {"weight": weight.char()}, **BLOCKS)
    with pytest.raises(UserError, match=r"has the dtype torch.int8, and must have float8_e4m3fn"):
        layers_of(read(folder))
