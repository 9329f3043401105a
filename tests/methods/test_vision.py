"""Image models quantized whole: convolutions, op sets, edges, smoothing and refusals, on small models that have learnt."""

from dataclasses import replace

import pytest
import torch
from labs import Lab, scheme
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from sqbench import api
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.batchnorm import is_batchnorm
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.recipes.configured import method_names, named


def divergence(lab: Lab, model: Model) -> float:
    """KL(float || model) over the test images, in nats."""
    batch = next(lab.test.batches(len(lab.test)))
    with torch.no_grad():
        own, floats = (log_softmax(each.forward(batch.images).double(), dim=-1) for each in (model, lab.model))
    return float(kl_div(own, floats, reduction="batchmean", log_target=True))


def quantized(lab: Lab, bits: Scheme, method: object = None) -> Model:
    return api.quantize(lab.model, lab.statistics, method or named("minmax"), bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_fewer_bits_cost_more(name: str, request: pytest.FixtureRequest) -> None:
    lab = request.getfixturevalue(name)
    costs = [divergence(lab, quantized(lab, scheme(bits, bits))) for bits in (8, 4, 3, 2)]
    assert costs == sorted(costs)
    assert 0 < costs[0] < 5e-3 < costs[2]  # at 8 bits what is left is values beyond the calibrated ranges
    assert divergence(lab, quantized(lab, scheme(8, None))) < costs[0]


def test_larger_op_sets_cost_more(vit: Lab) -> None:
    models = {ops: quantized(vit, scheme(6, 6, ops=ops)) for ops in ("linear", "linear+matmul", "full")}
    costs = [divergence(vit, model) for model in models.values()]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2]
    points = {ops: model.report["points"] for ops, model in models.items()}
    assert points == {"linear": 0, "linear+matmul": 8, "full": len(vit.model.topology.points)}


def test_quantized_points_hold_few_values(vit: Lab) -> None:
    model = quantized(vit, scheme(8, 3, ops="linear+matmul"))
    seen: dict[str, int] = {}
    owner = model.module.get_submodule("blocks.0.attn")
    for place, quantizer in enumerate(owner.quantized_points):
        quantizer.register_forward_hook(lambda layer, x, y, name=str(place): seen.update({name: len(y.unique())}))
    model.forward(vit.model.example())
    assert len(seen) == 4
    assert all(count <= 8 for count in seen.values())


def test_points_of_a_cnn_live_on_after_its_batchnorms() -> None:
    """timm keeps the activation inside BatchNorm: its input is a point, and stays one when the norm is folded away."""
    from timm import create_model

    from sqbench.calibration import collect
    from sqbench.data.preprocessing import Preprocessing
    from sqbench.models.image import ImageModel

    torch.manual_seed(0)
    module = create_model("test_efficientnet", num_classes=3).eval().requires_grad_(False)
    model = ImageModel(module, "net", "net", preprocessing=Preprocessing((3, 64, 64), (0.5,) * 3, (0.5,) * 3), classes=3)
    topology = model.topology
    assert any(".act:" in point.site for point in topology.points)
    statistics = collect(module, model.body, topology.sites, torch.randn(8, 3, 64, 64), points=topology.points)
    full = api.quantize(model, statistics, named("minmax"), scheme(8, 8, ops="full"))
    assert torch.isfinite(full.forward(model.example())).all()
    assert full.report["points"] == len(topology.points)


def test_dynamic_formats_reach_points_too(vit: Lab) -> None:
    token = Format(8, granularity="token", dynamic=True)
    dynamic = Scheme("w8a8_dynamic", Format(8, granularity="channel"), token, "full")
    assert divergence(vit, quantized(vit, dynamic)) < 1e-3
    grouped = replace(dynamic, activations=Format(8, granularity="group", group_size=8, dynamic=True), ops="linear+matmul")
    assert divergence(vit, quantized(vit, grouped)) < 1e-3


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_eight_bit_edges_help_at_three_bits(name: str, request: pytest.FixtureRequest) -> None:
    lab = request.getfixturevalue(name)
    plain, edges = (quantized(lab, scheme(3, 3, edge_bits=bits)) for bits in (None, 8))
    assert divergence(lab, edges) < divergence(lab, plain)
    widths = [layer.format.bits for layer in edges.module.modules() if isinstance(layer, QuantLayer) and layer.format]
    assert widths == [8, *[3] * (len(widths) - 2), 8]


def test_convolutions_are_quantized_with_their_batchnorm_folded(cnn: Lab) -> None:
    model = quantized(cnn, scheme(4, None))
    assert not any(is_batchnorm(layer) for layer in model.module.modules())
    assert any(is_batchnorm(layer) for layer in cnn.model.module.modules())
    layer = model.module.conv2
    assert isinstance(layer, QuantLayer)
    weight = weight_of(layer.simulated())
    assert weight.shape == (16, 72)
    assert all(len(row.unique()) <= 15 for row in weight)
    assert model.report["layers"] == 3
    assert model.report["coverage"] == 1
    float_weights = quantized(cnn, scheme(8, None))
    assert torch.allclose(float_weights.forward(cnn.model.example()), cnn.model.forward(cnn.model.example()), atol=0.2)


def test_per_channel_weights_beat_per_tensor(cnn: Lab) -> None:
    tensor = Scheme("w4", Format(4, granularity="tensor"), None)
    assert divergence(cnn, quantized(cnn, scheme(4, None))) < divergence(cnn, quantized(cnn, tensor))


def test_pixels_are_the_tokens_of_a_convolution(cnn: Lab) -> None:
    quantizer = ActivationQuantizer(Format(8, granularity="token", dynamic=True), axis=1)
    x = torch.randn(2, 8, 5, 5)
    x[:, :, 0, 0] *= 100  # one loud pixel must not cost the others their resolution
    error = (quantizer(x) - x).abs()
    assert error[:, :, 1:].max() < 0.05
    assert quantizer(x).shape == x.shape


def test_smoothing_leaves_the_float_vit_and_reaches_every_norm(vit: Lab) -> None:
    for alpha in (0.0, 0.5, 1.0):
        folded = quantized(vit, Scheme("fp"), named("smoothquant", alpha=alpha))
        before, after = (model.forward(vit.model.example()) for model in (vit.model, folded))
        assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    sources = [group["source"] for group in quantized(vit, scheme(8, 8), named("smoothquant")).report["groups"]]
    assert sources == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"]  # the head reads a slice


def test_smoothing_repairs_planted_outliers(vit: Lab) -> None:
    """Two channels of each norm made 40 times larger and their columns smaller: the same function, hard to quantize."""
    from sqbench.calibration import collect
    from sqbench.models.folding import fold, share

    module = share(vit.model.module)
    for group in vit.model.topology.groups:
        scale = torch.ones(32)
        scale[:2] = 1 / 40
        fold(module, group, scale)
    model = replace(vit.model, module=module)
    inputs = next(vit.train.batches(64)).images
    hard = Lab(model, collect(module, model.body, model.topology.sites, inputs), vit.train, vit.test)
    plain, smooth = (
        divergence(hard, quantized(hard, scheme(8, 6), method)) for method in (named("minmax"), named("smoothquant", alpha=0.5))
    )
    assert smooth < plain / 4


@pytest.mark.parametrize("method", [named("smoothquant"), named("awq", alpha=0.5)])
def test_a_cnn_has_nothing_to_smooth_and_says_so(cnn: Lab, method: object) -> None:
    with pytest.raises(UserError, match=r"cnn has no (norm -> linear )?group .*no linear reads a norm's output"):
        quantized(cnn, scheme(4, None), method)


def test_awq_searches_a_vit(vit: Lab) -> None:
    weights = Scheme("w3a16", Format(3, granularity="channel"), None)
    searched = quantized(vit, weights, named("awq", grid=10, no_clip=[]))
    assert all(group["loss"] <= group["loss_rtn"] for group in searched.report["groups"])
    assert divergence(vit, searched) < divergence(vit, quantized(vit, weights))


def test_every_method_runs_on_both_and_the_float_model_stays(vit: Lab, cnn: Lab) -> None:
    for name, recipe in ((name, named(name)) for name in method_names()):
        for lab in (vit, cnn):
            if recipe.trains or recipe.stored or recipe.foreign or (lab is cnn and recipe.has_alpha):
                continue
            before = {key: value.clone() for key, value in lab.model.module.state_dict().items()}
            model = quantized(lab, scheme(8, 8), recipe)
            assert torch.isfinite(model.forward(lab.model.example())).all(), name
            assert model.report["gradient_steps"] == 0
            assert all(torch.equal(before[key], value) for key, value in lab.model.module.state_dict().items())


def test_scales_do_not_cross_a_quantized_product() -> None:
    """v -> o moves a tensor whose range the calibration knows unscaled: with products quantized the pair is left, and named."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sqbench.calibration import collect
    from sqbench.models.language import LanguageModel

    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
    module = LlamaForCausalLM(LlamaConfig(**options)).eval().requires_grad_(False)
    model = LanguageModel(module, "llama", "llama")
    topology = model.topology
    statistics = collect(module, model.forward, topology.sites, torch.arange(48).view(4, 12), points=topology.points)
    method = named("smoothquant", pairs=True)
    plain = api.quantize(model, statistics, method, scheme(8, 8))
    products = api.quantize(model, statistics, method, scheme(8, 8, ops="linear+matmul"))
    assert len(plain.report["groups"]) == len(products.report["groups"]) + 1 == 4
    (refused,) = products.report["refused"]
    assert refused["group"] == "model.layers.0.self_attn.v_proj -> o_proj"
    assert "bits.ops=linear+matmul" in refused["reason"]


class Functional(nn.Module):
    """One linear whose weight is used without calling it, as BEiT's qkv is."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.called = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(torch.nn.functional.linear(x, self.hidden.weight))


def test_layers_that_stay_float_are_named_and_warned_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from sqbench.models.topology import discover

    module = Functional().eval().requires_grad_(False)
    with torch.no_grad():
        topology = discover(module, lambda: module(torch.randn(2, 4)))
    assert topology.layers == ("called",)
    assert topology.floating == (("hidden", "its weight is used without calling it"),)
    monkeypatch.setattr(logging.getLogger("sqbench"), "propagate", True)
    from sqbench.models.image import ImageModel
    from sqbench.parts.task import Task
    from sqbench.pipeline.report import warn_of_floats

    model = ImageModel(module, "odd", "odd")
    object.__setattr__(model, "__dict__", {**model.__dict__, "topology": topology})
    warn_of_floats(Task(model, None, scheme(8, 8)))  # type: ignore[arg-type]
    assert (
        "odd: 40.0 % of the weights stay in float though nobody asked for it, and 40.0 % are quantized; the largest is hidden"
        in caplog.text
    )


class Normed(nn.Module):
    """Linear, BatchNorm, linear: the norm folds into the first and is the source of a group for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x.flatten(1))))


def test_a_norm_that_is_folded_away_is_smoothed_first() -> None:
    from sqbench.calibration import collect
    from sqbench.data.preprocessing import Preprocessing
    from sqbench.models.image import ImageModel

    torch.manual_seed(0)
    module = Normed()
    module.norm.running_var.uniform_(0.5, 2)
    module.norm.running_mean.normal_()
    module.eval().requires_grad_(False)
    model = ImageModel(module, "normed", "normed", preprocessing=Preprocessing((2, 2, 2), (0.5,) * 2, (0.5,) * 2), classes=3)
    assert model.topology.batchnorms
    assert model.topology.groups
    inputs = torch.randn(64, 2, 2, 2)
    statistics = collect(module, model.body, model.topology.sites, inputs)
    folded = api.quantize(model, statistics, named("smoothquant"), Scheme("fp"))
    assert folded.report["groups"]
    torch.testing.assert_close(folded.forward(inputs), model.forward(inputs), rtol=1e-4, atol=1e-5)


def test_a_pair_around_a_quantized_activation_is_left() -> None:
    from sqbench.calibration import collect
    from sqbench.models.topology import discover

    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))).eval().requires_grad_(False)
    inputs = torch.randn(64, 1, 8)
    with torch.no_grad():
        topology = discover(module, lambda: module(inputs))
    assert "0.1:input" in {point.site for point in topology.points}
    assert topology.pairs
    from sqbench.pipeline.points import crosses

    stream = [point for point in topology.points if point.kind == "stream"]
    assert crosses(topology.pairs[0], stream)
    assert not crosses(topology.pairs[0], [])
    assert collect(module, module, topology.sites, inputs).inputs


def test_a_layer_with_fewer_channels_than_a_group_has_none_and_is_named(vit: Lab) -> None:
    grouped = Scheme("w4a16", Format(4, symmetric=False, granularity="group", group_size=16))
    model = quantized(vit, grouped)
    formats = {entry["layer"]: entry["format"] for entry in model.report["per_layer"]}
    assert formats["patch_embed.proj"] == "int4 asym channel"
    assert formats["blocks.0.attn.qkv"] == "int4 asym group 16"
    assert model.report["narrow"] == ["patch_embed.proj"]
    with pytest.raises(UserError, match=r"bits\.weights\.group_size=24 does not divide in_features=32 of blocks\.0\.attn\.qkv"):
        quantized(vit, Scheme("odd", Format(4, granularity="group", group_size=24)))
    uneven = Format(8, granularity="group", group_size=24, dynamic=True)
    with pytest.raises(UserError, match=r"bits\.activations\.group_size=24 does not divide in_features=32"):
        quantized(vit, Scheme("odd", Format(8, granularity="channel"), uneven))


class Mixed(nn.Module):
    """Convolutions of one colour, of 16 channels, of 16 channels one by one and of 1 x 1, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(self.wide(self.stem(x)).relu()).relu())
        return self.head(x.mean((2, 3)))


def test_linears_and_convolutions_follow_one_rule_for_groups() -> None:
    from sqbench.calibration import collect
    from sqbench.data.preprocessing import Preprocessing
    from sqbench.models.image import ImageModel

    torch.manual_seed(0)
    module = Mixed().eval().requires_grad_(False)
    model = ImageModel(module, "mixed", "mixed", preprocessing=Preprocessing((1, 12, 12), (0.5,), (0.5,)), classes=3)
    statistics = collect(module, module, model.topology.sites, torch.randn(4, 1, 12, 12))

    def formats(size: int) -> list[str]:
        bits = Scheme(
            "w4", Format(4, granularity="group", group_size=size), Format(8, granularity="group", group_size=size, dynamic=True)
        )
        quantized = api.quantize(model, statistics, "rtn", bits)
        layers = [quantized.module.get_submodule(name) for name in model.topology.layers]
        return [f"{layer.format.granularity} {layer.activation.fmt.granularity}" for layer in layers]

    none, inputs, both = "channel token", "channel group", "group group"
    assert formats(8) == [none, both, inputs, both, both]
    assert formats(24) == [none, none, none, none, both]
    works = r"these divide it: \[2, 3, 4, 6, 8, 12, 24\]; sizes for every layer: \[2, 4, 8, 24\]"
    with pytest.raises(
        UserError, match=rf"bits.weights.group_size=16 does not divide in_features=24 of head \(24 % 16 = 8\); {works}"
    ):
        formats(16)
    with pytest.raises(UserError, match=r"bits.weights.group_size=32: no layer has so many input channels, the widest has 24"):
        formats(32)


def test_points_without_statistics_are_asked_for(vit: Lab) -> None:
    from sqbench.calibration import Statistics

    bare = {site: stats for site, stats in vit.statistics.inputs.items() if ":" not in site}
    lab = Lab(vit.model, Statistics(bare, vit.statistics.sample), vit.train, vit.test)
    with pytest.raises(
        UserError, match=r"bits\.ops=full: the statistics hold no points; use calibrate\(model, inputs, points=True\)"
    ):
        quantized(lab, scheme(8, 8, ops="full"))


def test_a_quantized_layer_tells_dtype_and_device_as_the_float_one_did(vit: Lab) -> None:
    layer = quantized(vit, scheme(8, 8)).module.get_submodule("blocks.0.attn.proj")
    assert layer.weight.dtype == torch.float32
    assert layer.bias is not None
