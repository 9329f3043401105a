"""Whole models under both backends: the same function, layers merged and fused where that is sound, the rest named."""

import logging

import pytest
import torch
from labs import Lab, images, scheme
from torch import Tensor, nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data.text import Windows
from sqbench.evaluation import Result
from sqbench.evaluation.perplexity import perplexity
from sqbench.execution import flow, lower, onednn
from sqbench.execution.base import IntegerLayer, Part
from sqbench.execution.codes import CodedLayer
from sqbench.execution.flow import Chain, function_of, watch
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.language import LanguageModel
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, stored_bytes

TOKENS = Scheme("dynamic", Format(7, granularity="channel"), Format(8, granularity="token", dynamic=True))


def _encoded(layer: nn.Module, fmt: Format, activation: ActivationQuantizer | None = None) -> QuantLayer:
    return QuantLayer(layer, encode(weight_of(layer), fmt), activation)


def kernels(model: Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in model.report["execution"]:
        counts[entry["kernel"]] = counts.get(entry["kernel"], 0) + len(entry["layers"])
    return counts


@torch.no_grad()
def apart(a: Model, b: Model, x: Tensor) -> float:
    """Largest difference of two models' predictions, relative to the largest prediction."""
    wanted = b.forward(x)
    return float((a.forward(x) - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return next(images(64, 5).batches(64)).images


@pytest.mark.parametrize("ops", ["linear", "full"])
@pytest.mark.parametrize("name", ["vit", "cnn"])
@pytest.mark.parametrize(
    "bits", [pytest.param((7, 8), marks=pytest.mark.slow), (6, 6), pytest.param((4, 8), marks=pytest.mark.slow)]
)
def test_image_models_keep_their_function(
    name: str, bits: tuple[int, int], ops: str, pixels: Tensor, request: pytest.FixtureRequest
) -> None:
    lab: Lab = request.getfixturevalue(name)
    quantized = api.quantize(lab.model, lab.statistics, "minmax", scheme(*bits, ops=ops))
    simulated, executed = lower(quantized, "sim"), lower(quantized, "int")
    assert apart(simulated, quantized, pixels) < 1e-5
    assert apart(executed, quantized, pixels) < 2e-2  # a code on the edge between two moves what follows
    assert kernels(simulated) == {"simulated": len(lab.model.topology.layers)}
    assert "simulated" not in kernels(executed)
    assert stored_bytes(executed.module) == stored_bytes(quantized.module)
    batch = next(lab.test.batches(len(lab.test)))
    right = [(model.forward(batch.images).argmax(1) == batch.labels).float().mean() for model in (executed, quantized)]
    assert abs(right[0] - right[1]) <= 1 / len(batch.labels)


def test_the_given_model_stays_as_it_is(vit: Lab, pixels: Tensor) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", scheme(7, 8))
    before = quantized.forward(pixels)
    lower(quantized, "int")
    assert torch.equal(quantized.forward(pixels), before)
    assert "execution" not in quantized.report
    assert sum(isinstance(part, QuantLayer) for part in quantized.module.modules()) == len(vit.model.topology.layers)


def test_lowering_works_in_inference_mode(vit: Lab, pixels: Tensor) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", scheme(7, 8))
    with torch.inference_mode():
        executed = lower(quantized, "int")
        assert executed.report["fused"] == 2
        assert apart(executed, quantized, pixels) < 2e-2


def test_fc1_applies_gelu_and_writes_the_codes_of_fc2(vit: Lab) -> None:
    executed = lower(api.quantize(vit.model, vit.statistics, "minmax", scheme(7, 8)), "int")
    block = executed.module.blocks[0].mlp
    assert executed.report["fused"] == 2
    assert (block.fc1.post, block.fc1.output) == ("gelu", block.fc2.activation)
    assert isinstance(block.act, nn.Identity)


def test_dynamic_ranges_keep_their_rounding_to_themselves(vit: Lab, pixels: Tensor) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", TOKENS)
    executed = lower(quantized, "int")
    assert all(layer.output is None for layer in executed.module.modules() if isinstance(layer, CodedLayer))
    assert apart(executed, quantized, pixels) < 2e-2


class Fleeting(nn.Module):
    """Layers whose inputs nothing holds on to: the next may lie where the last one lay."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x * 0.5) * 2
        return x


def test_tensors_are_told_apart_even_when_one_takes_the_place_of_another() -> None:
    module = Fleeting().requires_grad_(False)
    for name in [f"layers.{index}" for index in range(8)]:
        module.set_submodule(name, _encoded(module.get_submodule(name), Format(4, granularity="channel")))
    found = watch(module, lambda: module(torch.randn(2, 16)))
    assert found.readers == tuple((f"layers.{index}",) for index in range(8))


class Residual(nn.Module):
    """What a layer writes goes to the next one, and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        return hidden + self.second(hidden)


def test_what_two_read_is_not_fused(vit: Lab) -> None:
    torch.manual_seed(0)
    module, fmt = Residual().requires_grad_(False), Format(8, symmetric=False)
    for name in ("first", "second"):
        limits = (torch.tensor(-3.0), torch.tensor(3.0))
        layer = _encoded(module.get_submodule(name), Format(6, granularity="channel"), ActivationQuantizer(fmt, limits))
        module.set_submodule(name, layer)
    x = torch.randn(4, 16)
    found = watch(module, lambda: module(x))
    assert found.chains[0] == Chain("first", "act", "second")  # a sum leaves no trace among modules

    class Toy(Model):
        def example(self) -> Tensor:
            return x

        def forward(self, inputs: Tensor) -> Tensor:
            return self.module(inputs)

        body = forward

    executed = lower(Toy(module, "toy", "toy"), "int")
    assert executed.report["fused"] == 0
    torch.testing.assert_close(executed.module(x), module(x), rtol=1e-4, atol=1e-5)


def test_activation_functions_are_known_by_what_they_compute() -> None:
    from timm.layers.activations import GELUTanh
    from transformers.activations import ACT2FN

    known = {"gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu", "relu": "relu", "quick_gelu": None, "tanh": None}
    assert {name: function_of(ACT2FN[name]) for name in known} == known
    assert function_of(GELUTanh()) == "gelu_tanh"
    assert function_of(nn.ReLU(inplace=True)) == "relu"
    assert function_of(nn.Dropout(0.0)) is None
    assert function_of(nn.LayerNorm(8)) is None
    assert function_of(nn.PReLU()) is None
    assert set(onednn.LINEAR_POSTS) == {"none", *flow.FUNCTIONS}


@pytest.mark.parametrize("bits", [TOKENS, Scheme("static", Format(7, granularity="channel"), Format(8, symmetric=False))])
def test_a_language_model_reads_one_product_for_q_k_v_and_one_for_gate_up(
    bits: Scheme, tiny: LanguageModel, statistics: Statistics, windows: Windows, baseline: Result
) -> None:
    quantized = api.quantize(tiny, statistics, "smoothquant", bits, alpha=0.5)
    executed = lower(quantized, "int")
    layer = executed.module.model.layers[0]
    parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    assert all(isinstance(part, Part) for part in parts)
    assert len({id(part.whole) for part in parts}) == 1
    assert layer.mlp.gate_proj.whole is layer.mlp.up_proj.whole
    assert layer.self_attn.q_proj.whole is not layer.mlp.up_proj.whole
    assert isinstance(layer.mlp.down_proj, IntegerLayer)
    assert stored_bytes(executed.module) == stored_bytes(quantized.module)
    found, wanted = (perplexity(model, windows, baseline).metrics["perplexity"] for model in (executed, quantized))
    assert found == pytest.approx(wanted, rel=1e-3)


def test_layers_without_a_kernel_are_simulated_and_named(
    tiny: LanguageModel, statistics: Statistics, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Scheme("odd", Format(4, granularity="group", group_size=4), Format(8, granularity="token", dynamic=True))
    with caplog.at_level(logging.WARNING, "sqbench"):
        executed = lower(api.quantize(tiny, statistics, "rtn", odd), "int")
    assert kernels(executed) == {"simulated": 14}
    (entry,) = executed.report["execution"]
    assert "granularity tensor or channel, not group" in entry["reason"]
    assert "14 of 14 layers are simulated" in caplog.text
    with caplog.at_level(logging.WARNING, "sqbench"):
        caplog.clear()
        lower(api.quantize(tiny, statistics, "rtn", odd), "sim")
    assert not caplog.records


def test_a_float_model_has_nothing_to_report(tiny: LanguageModel) -> None:
    lowered = lower(tiny, "int")
    assert lowered.report is None
    ids = tiny.example()
    torch.testing.assert_close(lowered.forward(ids), tiny.forward(ids), rtol=1e-5, atol=1e-5)
    assert lowered.topology is tiny.topology
