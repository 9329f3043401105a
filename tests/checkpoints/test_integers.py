"""Folders in the layouts of GPTQ and AWQ, packed by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.examples import Tensors, rewritten
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.checkpoints.integers import AWQ_ORDER
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.codec import EncodedTensor, decode, encode
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale

FLOAT16 = Scale("float16")
ASYMMETRIC = Format(4, False, "group", 32, scale=FLOAT16)
SYMMETRIC = replace(ASYMMETRIC, symmetric=True, convention="half_range")


def words(unsigned: Tensor) -> Tensor:
    """int32 [rows / 8, columns] of 4-bit numbers [rows, columns]. Eight of a column are a word."""
    places = torch.arange(8).view(1, 8, 1) * 4
    whole = (unsigned.long().unflatten(0, (-1, 8)) << places).sum(1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


def by_row(values: Tensor) -> Tensor:
    return values.squeeze(-1)


def gptq(encoded: EncodedTensor, order: Tensor | None = None, *, less_one: bool = True) -> Tensors:
    """A layer in GPTQ's layout. `order` is that of the columns in which groups are contiguous."""
    groups = torch.arange(encoded.codes.shape[1]) // (encoded.format.group_size or 32)
    zeros = (by_row(encoded.zero_point).long() + 8 - int(less_one)) % 16
    g_idx = groups if order is None else torch.empty_like(groups).index_copy_(0, order, groups)
    return {
        "qweight": words(encoded.codes.t() + 8),
        "qzeros": words(zeros).t(),
        "scales": by_row(encoded.scale).t().half(),
        "g_idx": g_idx.int(),
    }


def awq(encoded: EncodedTensor) -> Tensors:
    """A layer in AWQ's layout."""

    def packed(unsigned: Tensor) -> Tensor:  # [out, n]
        return words(unsigned.unflatten(0, (-1, 8))[:, list(AWQ_ORDER)].flatten(0, 1)).t()

    codes, zeros = encoded.codes + 8, by_row(encoded.zero_point).long() + 8
    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": by_row(encoded.scale).t().half()}


Make = Callable[..., QuantizedFolder]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Make:
    def make(config: dict[str, Any], change: Callable[[str, Tensor], Tensors]) -> QuantizedFolder:
        return QuantizedFolder.of(rewritten(tiny_folder, tmp_path / "made", config, change), "model.name=x")

    return make


def check(found: QuantizedFolder, source: Path, fmt: Format) -> None:
    floats = load_file(source / "model.safetensors")
    assert len(found.layers) == 14
    for layer, one in found.layers.items():
        ours, stored = encode(floats[f"{layer}.weight"], fmt), one.encoded(found.read)
        assert torch.equal(stored.codes, ours.codes), layer
        assert torch.equal(decode(stored), decode(ours)), layer


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("fmt", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_gptq(folder: Make, tiny_folder: Path, version: str, fmt: Format) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": fmt.symmetric, "checkpoint_format": version}
    found = folder(config, lambda layer, weight: gptq(encode(weight, fmt), less_one=version == "gptq"))
    check(found, tiny_folder, fmt)
    assert found.scheme.name == ("w4a16_g32_sym" if fmt.symmetric else "w4a16_g32")


def test_columns_in_the_order_of_their_activations(folder: Make, tiny_folder: Path) -> None:
    def order(weight: Tensor) -> Tensor:
        return torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))

    def change(layer: str, weight: Tensor) -> Tensors:
        columns = order(weight)
        ordered = encode(weight[:, columns], ASYMMETRIC)
        codes = torch.empty_like(ordered.codes).index_copy_(1, columns, ordered.codes)
        return gptq(replace(ordered, codes=codes), columns)

    found = folder({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}, change)
    floats = load_file(tiny_folder / "model.safetensors")
    for layer, one in found.layers.items():
        weight = floats[f"{layer}.weight"]
        columns = order(weight)
        values = decode(encode(weight[:, columns], ASYMMETRIC))
        stored = one.encoded(found.read)
        assert torch.equal(decode(stored)[:, columns], values), layer
        assert not stored.format.contiguous
    model = found.load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")
    lowered = lower(model, "int")
    (entry,) = lowered.report["execution"]
    assert entry["kernel"] == "simulated"  # no kernel reads such groups
    assert "contiguous" in entry["reason"]


def test_awq(folder: Make, tiny_folder: Path) -> None:
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    check(folder(config, lambda layer, weight: awq(encode(weight, ASYMMETRIC))), tiny_folder, ASYMMETRIC)


@pytest.mark.parametrize(
    ("packing", "make"),
    [
        ("auto_round:auto_gptq", gptq),
        ("auto_round:gptqmodel", partial(gptq, less_one=False)),
        ("auto_round", partial(gptq, less_one=False)),
        ("auto_round:auto_awq", awq),
    ],
)
def test_auto_round_packs_in_several_ways(
    folder: Make, tiny_folder: Path, packing: str, make: Callable[[EncodedTensor], Tensors]
) -> None:
    config = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 32, "sym": False}
    check(folder(config, lambda layer, weight: make(encode(weight, ASYMMETRIC))), tiny_folder, ASYMMETRIC)


@pytest.mark.parametrize(
    "config",
    [
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            "extra_config": {"model.layers.0.mlp.up_proj": {"group_size": 16}, ".*layers\\.1.*up_proj": {"group_size": 16}},
        },
        {"quant_method": "gptq", "dynamic": {"-:.*lm_head": {}, "+:.*\\.up_proj$": {"group_size": 16}}},
    ],
    ids=lambda config: config["quant_method"],
)
def test_some_layers_have_settings_of_their_own(folder: Make, tiny_folder: Path, config: dict[str, Any]) -> None:
    def fmt(layer: str) -> Format:
        return replace(ASYMMETRIC, group_size=16 if layer.endswith("up_proj") else 32)

    common = {"bits": 4, "group_size": 32, "sym": False}
    found = folder({**common, **config}, lambda layer, weight: gptq(encode(weight, fmt(layer))))
    floats = load_file(tiny_folder / "model.safetensors")
    for layer, one in found.layers.items():
        assert torch.equal(decode(one.encoded(found.read)), decode(encode(floats[f"{layer}.weight"], fmt(layer)))), layer


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "auto-round", "packing_format": "auto_round:mlx"}, r"packing_format=auto_round:mlx: must be one of"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round", "act_bits": 8, "bits": 4, "group_size": 32},
            r"has data_type=int act_bits=8: must be int, and 16 or more",
        ),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round", "rotation_config": {"a": 1}},
            r"has rotation_config, which sqbench does not read",
        ),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, r"version=gemv: must be gemm"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"},
            r"=marlin: must be one of gptq, gptq_v2",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 40},
            r"quantization_config\.group_size=40 does not divide in_features=\d+",
        ),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, r"bits=5 group_size=32: must be 2, 3, 4, 8"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64},
            r"has scales \[\d, \d+\], and its qweight with group_size=64 needs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder: Make, config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        folder(config, lambda layer, weight: gptq(encode(weight, ASYMMETRIC)))


def test_groups_of_other_sizes_than_the_configuration_says_are_refused(folder: Make) -> None:
    def change(layer: str, weight: Tensor) -> Tensors:
        made = gptq(encode(weight, ASYMMETRIC))
        made["g_idx"][0] = 1
        return made

    found = folder({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, change)
    with pytest.raises(UserError, match=r"its g_idx has a group of 31 columns, and group_size is 32"):
        found.load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def test_without_a_g_idx_groups_are_neighbours(folder: Make, tiny_folder: Path) -> None:
    def change(layer: str, weight: Tensor) -> Tensors:
        made = gptq(encode(weight, ASYMMETRIC))
        del made["g_idx"]
        return made

    check(folder({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, change), tiny_folder, ASYMMETRIC)


def test_a_layer_that_lacks_a_part_is_named(folder: Make, tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    found = folder(config, lambda layer, weight: gptq(encode(weight, ASYMMETRIC)))
    tensors = load_file(found.folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, found.folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj has a qweight and no scales"):
        QuantizedFolder.of(found.folder, "model.name=x")
