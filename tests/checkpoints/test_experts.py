"""Checkpoints of mixtures of experts: every expert's matrix is a layer with the codes of the file, under the name of the model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.examples import Tensors
from mixtures import MIXTURES, experts_of, stacked
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.errors import UserError
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import QuantLayer

Change = Callable[[Tensors], object]  # of what a folder holds
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
GROUPS = {"group_0": {"targets": ["Linear"], "weights": INT8}}
CONFIG = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": GROUPS, "ignore": ["lm_head"]}
INPUT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


@pytest.fixture
def floats(tiny_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a small float mixture, as transformers saves it."""

    def save(family: str) -> Path:
        folder = tmp_path / family
        stacked(family).module.save_pretrained(folder)
        for file in tiny_folder.glob("tokenizer*"):
            shutil.copy(file, folder)
        return folder

    return save


def copied(source: Path, folder: Path, tensors: Tensors, quantization: dict[str, Any] | None) -> Path:
    """A copy of a folder with other tensors."""
    shutil.copytree(source, folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if quantization is not None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, "quantization_config": quantization}))
    return folder


def in_int8(source: Path, folder: Path, change: Change = lambda tensors: None, **config: Any) -> tuple[Path, Path]:
    """A folder whose experts and attention have int8 weights, and the float folder of its decoded weights."""
    codes, decoded = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() == 2 and (".experts." in name or "_proj" in name):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            codes |= {name: (tensor / scale).round().to(torch.int8), f"{name}_scale": scale}
            decoded[name] = codes[name] * scale
        else:
            codes[name] = decoded[name] = tensor
    change(codes)
    return copied(source, folder / "q", codes, CONFIG | config), copied(source, folder / "decoded", decoded, None)


def read(folder: Path) -> LanguageModel:
    return QuantizedFolder.of(folder, "model.name=x").load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def logits(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.forward(model.example())


@torch.no_grad()
def by_transformers(folder: Path, ids: Tensor, **options: Any) -> Tensor:
    result: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)(ids).logits
    return result


def layers_of_experts(model: LanguageModel) -> dict[str, torch.nn.Module]:
    found = {}
    for name, experts in experts_of(model.module).items():
        for number in range(experts.count):
            found |= {f"{name}.{number}.{leaf}": layer for leaf, layer in experts.get_submodule(str(number)).named_children()}
    return found


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "DeepseekV3"])
def test_experts_have_the_codes_of_the_file_and_the_names_of_the_model(
    family: str, floats: Callable[[str], Path], tmp_path: Path
) -> None:
    """Mixtral's files say w1, w2 and w3."""
    folder, decoded = in_int8(floats(family), tmp_path)
    model = read(folder)
    found = layers_of_experts(model)
    assert len(found) == MIXTURES[family][1] * 4 * 3
    assert all(isinstance(layer, QuantLayer) for layer in found.values())
    assert {entry["layer"] for entry in model.report["per_layer"]} >= found.keys()
    torch.testing.assert_close(logits(model), by_transformers(decoded, model.example()), rtol=1e-5, atol=1e-5)


def test_inputs_of_experts_are_rounded_by_their_own_scales(floats: Callable[[str], Path], tmp_path: Path) -> None:
    def with_inputs(tensors: Tensors) -> None:
        names = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
        tensors |= {f"{name}.input_scale": torch.tensor([0.01 * (1 + number)]) for number, name in enumerate(sorted(names))}
        for name in names:
            if name.endswith(".w3"):  # reads what w1 reads
                tensors[f"{name}.input_scale"] = tensors[f"{name.removesuffix('3')}1.input_scale"].clone()

    groups = {"group_0": GROUPS["group_0"] | {"input_activations": INPUT}}
    folder, _ = in_int8(floats("Mixtral"), tmp_path, with_inputs, config_groups=groups)
    stored, found = load_file(folder / "model.safetensors"), layers_of_experts(read(folder))
    for name, layer in found.items():
        assert isinstance(layer, QuantLayer)
        assert layer.activation is not None
        assert layer.activation.static is not None
        place, _, leaf = name.replace("mlp.experts", "block_sparse_moe.experts").rpartition(".")
        word = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}[leaf]
        assert float(layer.activation.static.scale) == float(stored[f"{place}.{word}.input_scale"])
    shared = [found[f"model.layers.0.mlp.experts.2.{leaf}"] for leaf in ("gate_proj", "up_proj", "down_proj")]
    gate, up, down = (layer.activation for layer in shared)  # type: ignore[union-attr]
    assert gate is up
    assert gate is not down


def test_a_quantized_router_is_refused(floats: Callable[[str], Path], tmp_path: Path) -> None:
    def with_router(tensors: Tensors) -> None:
        name = "model.layers.0.mlp.gate.weight"
        tensors |= {name: torch.ones_like(tensors[name], dtype=torch.int8), f"{name}_scale": torch.ones(len(tensors[name]), 1)}

    folder, _ = in_int8(floats("Qwen3Moe"), tmp_path, with_router)
    with pytest.raises(UserError, match=r"quantized tensors that are no layers of the model \(model.layers.0.mlp.gate\)"):
        read(folder)


# ---- gpt-oss ----------------------------------------------------------------------------------------------------------------


def in_mxfp4(source: Path, folder: Path, change: Change = lambda tensors: None) -> Path:
    """A folder of gpt-oss with random codes. transformers itself reads such folders."""
    tensors: Tensors = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            shape = (experts, rows, columns // 32)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(118, 126, shape, generator=generator, dtype=torch.uint8)
        else:
            tensors[name] = tensor
    change(tensors)
    return copied(source, folder / "q", tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


@pytest.fixture
def gpt_oss(floats: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MIXTURES, "GptOss", (MIXTURES["GptOss"][0] | {"intermediate_size": 64}, 2))  # groups of 32
    return floats("GptOss")


def test_stacked_mxfp4_is_read_as_transformers_reads_it(gpt_oss: Path, tmp_path: Path) -> None:
    from transformers import Mxfp4Config

    folder = in_mxfp4(gpt_oss, tmp_path)
    model = read(folder)
    found = layers_of_experts(model)
    assert len(found) == 2 * 4 * 3
    assert all(isinstance(layer, QuantLayer) and layer.format.element == "e2m1" for layer in found.values())
    theirs = by_transformers(folder, model.example(), quantization_config=Mxfp4Config(dequantize=True))
    torch.testing.assert_close(logits(model), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj_scales"),
            r"down_proj has blocks \[.*\] and scales \[\], ",
        ),
        (
            lambda tensors: tensors.update(
                {"model.layers.0.mlp.experts.down_proj_scales": torch.zeros(4, 32, 3, dtype=torch.uint8)}
            ),
            r"experts.down_proj has blocks \[4, 32, 2, 16\] and scales \[4, 32, 3\], which do not fit",
        ),
        (
            lambda tensors: [tensors.pop(f"model.layers.1.mlp.experts.down_proj_{part}") for part in ("blocks", "scales")],
            r"model\.layers\.1\.mlp\.experts has \[4\] experts in its matrices, and must have one number in gate_up_proj",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.experts.side_proj_blocks": torch.zeros(4, 32, 2, 16)}),
            r"side_proj_blocks is none of the matrices that mxfp4 stacks \(gate_up_proj, down_proj\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: Change, message: str, gpt_oss: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        QuantizedFolder.of(in_mxfp4(gpt_oss, tmp_path, change), "model.name=x")


def test_blocks_of_another_dtype_are_refused(gpt_oss: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    folder = in_mxfp4(gpt_oss, tmp_path, lambda tensors: tensors.update({name: tensors[name].view(torch.int8)}))
    with pytest.raises(UserError, match=r"down_proj_blocks: has the dtype torch\.int8, and must have uint8"):
        read(folder)
