"""A scheme for chosen layers: nothing else is rounded, folded or counted."""

from dataclasses import replace

import pytest
import torch
from labs import Lab, scheme
from torch import nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.models.topology import Topology, discover
from sqbench.parts.layer_formats import formats_of
from sqbench.parts.task import Task
from sqbench.pipeline.engine import quantize
from sqbench.pipeline.points import quantized_points
from sqbench.quant.access import weight_of
from sqbench.quant.layers import QuantLayer, stored_bytes
from sqbench.recipes.configured import named

W4 = Scheme("w4", Format(4, symmetric=False, granularity="group", group_size=32))
MLP = "model.layers.1.mlp"


def changed(model: LanguageModel, quantized: LanguageModel) -> set[str]:
    """Layers whose weight is another."""
    pairs = {name: (model.module.get_submodule(name), quantized.module.get_submodule(name)) for name in model.topology.layers}
    return {
        name for name, (old, new) in pairs.items() if isinstance(new, QuantLayer) or not torch.equal(weight_of(old), weight_of(new))
    }


def topology_of(*layers: str) -> Topology:
    return Topology(layers, {name: name for name in layers}, (), (), ())


def test_only_chosen_layers_change(tiny: LanguageModel, statistics: Statistics) -> None:
    quantized = api.quantize(tiny, statistics, "rtn", replace(W4, layers=(MLP, "*.0.*.o_proj")))
    chosen = {f"{MLP}.{name}" for name in ("gate_proj", "up_proj", "down_proj")} | {"model.layers.0.self_attn.o_proj"}
    assert changed(tiny, quantized) == chosen
    assert {layer["layer"] for layer in quantized.report["per_layer"]} == chosen
    assert quantized.report["layers"] == 4
    sizes = {name: weight_of(tiny.module.get_submodule(name)).shape for name in chosen}
    assert quantized.report["weights"] == sum(shape.numel() for shape in sizes.values())
    assert W4.weights is not None
    saved = sum(4 * shape.numel() - W4.weights.stored_bytes(*shape) for shape in sizes.values())
    assert stored_bytes(quantized.module) == stored_bytes(tiny.module) - saved


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_scales_move_where_a_reader_is_quantized(method: str, tiny: LanguageModel, statistics: Statistics) -> None:
    bits = replace(scheme(4, 8), layers=(MLP,))
    whole, part = (api.quantize(tiny, statistics, method, bits=one, alpha="auto") for one in (replace(bits, layers=None), bits))
    moved = {group["source"]: group for group in part.report["groups"]}
    expected = {"model.layers.1.post_attention_layernorm"} | ({f"{MLP}.up_proj"} if method == "awq" else set())
    assert set(moved) == expected
    same = {group["source"]: group for group in whole.report["groups"] if group["source"] in expected}
    assert moved == same  # the search for a group knows nothing of the others
    norms = [name for name, module in tiny.module.named_modules() if "norm" in name.rpartition(".")[2]]
    scaled = [
        name for name in norms if not torch.equal(tiny.module.get_submodule(name).weight, part.module.get_submodule(name).weight)
    ]
    assert scaled == ["model.layers.1.post_attention_layernorm"]


def test_a_reader_that_stays_in_float_is_folded_and_not_rounded(tiny: LanguageModel, statistics: Statistics) -> None:
    attention = "model.layers.0.self_attn"
    part = api.quantize(tiny, statistics, "awq", replace(W4, layers=(f"{attention}.q_proj",)), alpha="auto", clip=False)
    (group,) = part.report["groups"]
    assert group["readers"] == [f"{attention}.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    norm, key = "model.layers.0.input_layernorm", f"{attention}.k_proj"
    scale = tiny.module.get_submodule(norm).weight / part.module.get_submodule(norm).weight
    assert torch.allclose(part.module.get_submodule(key).weight, tiny.module.get_submodule(key).weight * scale, rtol=1e-5)
    assert [layer["layer"] for layer in part.report["per_layer"]] == [f"{attention}.q_proj"]


def test_without_a_group_among_the_chosen_a_method_only_rounds(tiny: LanguageModel, statistics: Statistics) -> None:
    bits = replace(scheme(4, 8), layers=("*.o_proj",))
    rounded = {method: api.quantize(tiny, statistics, method, bits, alpha=0.5) for method in ("smoothquant", "minmax")}
    assert rounded["smoothquant"].report["groups"] == []
    ids = tiny.example()
    assert torch.equal(rounded["smoothquant"].forward(ids), rounded["minmax"].forward(ids))


def test_edges_are_those_of_the_model(tiny: LanguageModel, statistics: Statistics) -> None:
    inner, first = (Task(tiny, statistics, replace(W4, edge_bits=8, layers=layers)) for layers in ((MLP,), ("model.layers.0",)))
    bits = [fmt.bits for fmt, _ in formats_of(inner).values() if fmt is not None]
    assert bits == [4, 4, 8]  # down_proj of the last block is the model's last layer
    assert [fmt.bits for fmt, _ in formats_of(first).values() if fmt is not None] == [8, *[4] * 6]


@pytest.mark.parametrize(
    ("layers", "owners"),
    [
        (("blocks.0.attn",), {"blocks.0.attn"}),
        (("blocks.0.mlp",), {"blocks.0.mlp.act"}),
        (("blocks.0.attn.qkv",), set()),  # what attention multiplies came through a layer that stays in float
        (("blocks.0.mlp", "blocks.0.attn"), {"blocks.0", "blocks.0.attn", "blocks.0.mlp.act", "blocks.0.norm1", "blocks.0.norm2"}),
        (("head",), set()),
    ],
)
def test_tensors_between_layers_go_with_the_layers_around_them(layers: tuple[str, ...], owners: set[str], vit: Lab) -> None:
    task = vit.task(scheme(4, 4, ops="full", layers=layers))
    found = {point.owner for point in quantized_points(task)}
    assert found <= owners
    everywhere = {point.owner for point in quantized_points(vit.task(scheme(4, 4, ops="full")))}
    assert found == owners & everywhere
    assert bool(found) == bool(owners)


def test_training_quantizes_chosen_layers_alone(vit: Lab) -> None:
    method = named("qat_lsq", epochs=1, images=64, batch=32)
    chosen = ("blocks.0.mlp",)
    trained = api.train(vit.model, vit.statistics, vit.train, method, scheme(3, 3, layers=chosen))  # type: ignore[arg-type]
    assert [layer["layer"] for layer in trained.report["per_layer"]] == ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert trained.report["weights"] == 2 * 32 * 128
    plain = quantize(vit.task(scheme(3, 3, layers=chosen)), named("minmax"))
    assert trained.report["coverage"] == plain.report["coverage"] < 0.5


def test_batchnorm_folds_into_a_layer_that_stays_in_float(cnn: Lab) -> None:
    quantized = quantize(cnn.task(scheme(8, 8, layers=("conv2",))), named("minmax"))
    assert [layer["layer"] for layer in quantized.report["per_layer"]] == ["conv2"]
    assert cnn.loss(quantized) == pytest.approx(cnn.loss(cnn.model), rel=0.05)


# ---------------------------------------------------------------- names


def test_a_name_stands_for_a_layer_or_for_all_in_a_module() -> None:
    topology = topology_of("stem", "blocks.1.fc", "blocks.10.fc", "blocks.1.attn.q", "head")
    assert topology.chosen(["blocks.1"]) == ("blocks.1.fc", "blocks.1.attn.q")
    assert topology.chosen(["head", "stem"]) == ("stem", "head")  # in order of execution
    assert topology.chosen(["*.fc"]) == ("blocks.1.fc", "blocks.10.fc")
    assert topology.chosen(["blocks.*"]) == topology.layers[1:4]
    with pytest.raises(UserError, match=r"layers=block\.1\.fc: matches no layer; did you mean blocks\.1\.fc"):
        topology.chosen(["head", "block.1.fc"])


def test_siblings_are_layers_of_one_module() -> None:
    topology = topology_of("stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.downsample.0", "layer2.0.conv1", "head")
    assert topology.siblings == {
        "stem": ("stem",),
        "layer1.0": ("layer1.0.conv1", "layer1.0.conv2"),
        "layer1.0.downsample": ("layer1.0.downsample.0",),
        "layer2.0": ("layer2.0.conv1",),
        "head": ("head",),
    }


def test_siblings_of_a_sequential_are_each_alone_at_the_top() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    assert discover(module, lambda: module(torch.ones(1, 4))).siblings == {"0": ("0",), "2": ("2",)}
