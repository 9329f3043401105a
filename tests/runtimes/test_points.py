"""Tensors that are rounded between layers in runtimes: numbers of the simulation, and products of attention in integers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from cli import Ended
from encoders import load, save_encoder
from labs import Lab, scheme
from runtimes.agreement import apart, otherwise
from runtimes.test_parity import normal
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sqbench import api
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.params import QParams
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.functions import Function
from sqbench.models.language import LanguageModel
from sqbench.pipeline.points import place_points
from sqbench.quant.layers import ActivationQuantizer
from sqbench.quant.operations import Point, QuantizedOwner, find_points
from sqbench.records.store import Store
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.runtime import Executed

OPS = ("linear+matmul", pytest.param("full", marks=pytest.mark.slow))
MORE = [pair for pair in product((-128, 0, 5, 127), (-128, 0, -7)) if pair not in ((-128, 0), (0, -7), (5, -128), (127, -7))]


def static(ops: str, *, symmetric: bool = False) -> Scheme:
    """8 bits, with static ranges."""
    return replace(scheme(8, 8, ops=ops), activations=Format(8, symmetric=symmetric))


def multiplied(model: Model) -> set[str]:
    """The products of activations that a record names."""
    return {name for entry in model.report["execution"] for name in entry["layers"] if "@" in name}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ops", OPS)
@pytest.mark.usefixtures("exact")
def test_a_vision_transformer_runs_in_integers(ops: str, symmetric: bool, backend: str, vit: Lab) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", static(ops, symmetric=symmetric))
    executed = lower(quantized, backend)
    for count in (2, 5):  # pixels of images lie on edges between codes, where rounding is chance, and few of these numbers do
        assert apart(executed, quantized, normal(count, 1, 12, 12, seed=count)) < 2e-2
    products = {f"blocks.{number}.attn:{name}" for number in (0, 1) for name in ("q@k", "probs@v")}
    assert multiplied(executed) == products
    assert not products & otherwise(executed).keys()


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.usefixtures("exact")
def test_a_network_without_attention_runs_rounded_between_layers(ops: str, backend: str, cnn: Lab) -> None:
    quantized = api.quantize(cnn.model, cnn.statistics, "minmax", static(ops))
    executed = lower(quantized, backend)
    assert apart(executed, quantized, normal(3, 1, 12, 12)) < 2e-2  # ONNX Runtime rounds outputs of convolutions from other sums
    assert multiplied(executed) == set()


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.usefixtures("exact")
def test_language_models_predict_the_same(ops: str, backend: str, tiny: LanguageModel, windows: Windows) -> None:
    statistics = api.calibrate(tiny, windows.calibration, points=True)
    quantized = api.quantize(tiny, statistics, "rtn", static(ops))
    executed = lower(quantized, backend)
    assert apart(executed, quantized, windows.evaluation[:1]) < 6e-2  # a code on the edge between two moves what follows
    names = {f"model.layers.{number}.self_attn:{name}" for number in (0, 1) for name in ("q@k", "probs@v")}
    assert multiplied(executed) == names
    assert otherwise(executed) == {}


@pytest.mark.slow  # the other families of models show the same
@pytest.mark.parametrize("ops", OPS)
@pytest.mark.usefixtures("exact")
def test_encoders_give_the_same_vectors(ops: str, backend: str, tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    quantized = api.quantize(model, api.calibrate(model, model.example(), points=True), "rtn", static(ops))
    executed = lower(quantized, backend)
    for shape in ((1, 5), (3, 17)):
        assert apart(executed, quantized, quantized.like(shape)) < 6e-2  # type: ignore[attr-defined]
    assert len(multiplied(executed)) == 2 * model.module.config.num_hidden_layers
    assert otherwise(executed) == {}


# ---- Products ----------------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    """The product of two inputs, whose second is transposed or not. The length of their sums is known or not."""

    def __init__(self, *, transposed: bool, known: bool = True) -> None:
        super().__init__()
        self.transposed, self.known = transposed, known

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.known:
            x, y = x.reshape(-1, 5, 24), y.reshape(-1, 24, 7)
        if self.transposed:
            y = y.transpose(-2, -1).clone()
        return x @ (y.transpose(-2, -1) if self.transposed else y)


@torch.no_grad()
def computed(backend: str, module: nn.Module, zero_points: tuple[int, int]) -> tuple[float, Executed]:
    """The largest difference of a product of rounded tensors in a runtime relative to the largest number, and how it runs."""
    inputs = normal(2, 5, 24), normal(2, 24, 7, seed=1)
    points = [Point("", f"matmul.{name}", "matmul", False) for name in "ab"]
    scales = [torch.tensor(0.03), torch.tensor(0.017)]
    pairs = [QParams(scale, torch.tensor(float(zero))) for scale, zero in zip(scales, zero_points, strict=True)]
    QuantizedOwner(module.eval(), points, [ActivationQuantizer(Format(8, symmetric=False), pair) for pair in pairs])
    wanted, runtime = module(*inputs), RUNTIMES[backend]
    free = {name: {0: "batch"} for name in ("x", "y", "outputs")}
    session = runtime.start(runtime.write(Function(module, dict(zip("xy", inputs, strict=True)), ("outputs",), free), {}))
    (found,) = session(*inputs)
    return float((found - wanted).abs().max() / wanted.abs().max()), session.executed()[":matmul.a@matmul.b"]


@pytest.mark.parametrize(
    "zero_points", [(-128, 0), (0, -7), (5, -128), (127, -7), *(pytest.param(pair, marks=pytest.mark.slow) for pair in MORE)]
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.usefixtures("exact")
def test_a_product_has_no_error_but_rounding_and_multiplies_integers(
    transposed: bool, zero_points: tuple[int, int], backend: str
) -> None:
    difference, executed = computed(backend, Product(transposed=transposed), zero_points)
    assert difference < 1e-5
    assert executed.integers


@pytest.mark.usefixtures("exact")
def test_openvino_multiplies_floats_where_it_cannot_know_the_length_of_sums() -> None:
    pytest.importorskip("openvino")
    for zero_points, integers in (((3, 4), False), ((-128, 4), True), ((0, 0), True)):
        difference, executed = computed("openvino", Product(transposed=False, known=False), zero_points)
        assert difference < 1e-5
        assert executed.integers == integers


class Mixing(nn.Module):
    """The second input mixed by a softmax of the first. It is a module, or a function of torch."""

    def __init__(self, *, as_module: bool) -> None:
        super().__init__()
        self.softmax = nn.Softmax(-1) if as_module else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.softmax is None:
            return scaled_dot_product_attention(x, x, y)
        return self.softmax(x @ x.transpose(-2, -1)) @ y


@pytest.mark.parametrize("as_module", [False, True])
@torch.no_grad()
@pytest.mark.usefixtures("exact")
def test_a_softmax_between_two_rounded_tensors_is_that_of_floats(as_module: bool, backend: str) -> None:
    inputs, module = (normal(2, 24, 16), normal(2, 24, 16, seed=1)), Mixing(as_module=as_module).eval()
    ranges = {"probs": (0.0, 1.0), "matmul1.a": (0.0, 1.0), "scores": (-8.0, 8.0), "input": (-8.0, 8.0)}

    def quantizer(point: Point) -> ActivationQuantizer:
        low, high = (torch.tensor([[end]]) for end in ranges.get(point.name, (-5.0, 6.0)))
        return ActivationQuantizer(Format(8, symmetric=False), (low, high))

    place_points(module, list(find_points(module, lambda: module(*inputs))), quantizer)
    wanted, runtime = module(*inputs), RUNTIMES[backend]
    function = Function(module, dict(zip("xy", inputs, strict=True)), ("outputs",), {"x": {0: "batch"}, "y": {0: "batch"}})
    (found,) = runtime.start(runtime.write(function, {}))(*inputs)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


# ---- What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops", OPS)
def test_ranges_found_at_run_time_are_refused_between_layers(ops: str, backend: str, vit: Lab) -> None:
    dynamic = replace(static(ops), activations=Format(8, granularity="token", dynamic=True))
    quantized = api.quantize(vit.model, vit.statistics, "rtn", dynamic)
    title = RUNTIMES[backend].title
    with pytest.raises(UserError, match=f"cannot be written; {title} rounds tensors between layers with granularity tensor"):
        lower(quantized, backend)


def test_a_quantizer_of_another_kind_is_refused(backend: str, vit: Lab) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", static("linear+matmul"))
    quantized.module.get_submodule("blocks.0.attn").quantized_points[1] = nn.Identity()
    with pytest.raises(UserError, match=r"blocks\.0\.attn:k cannot be written; Identity rounds it"):
        lower(quantized, backend)


@pytest.mark.slow  # two runs
@pytest.mark.usefixtures("exact")
def test_points_through_the_command_line(backend: str, command: Callable[..., Ended], results: Path) -> None:
    ended = command("-m", "method=rtn", "bits=w8a8", "bits.ops=linear+matmul", f"backend=sim,{backend}")
    assert ended.code == 0, ended.err
    records = {record.identity["backend"]: record for record in Store(results).records() if record.quantized}
    assert set(records) == {"sim", backend}
    perplexities = [record.metrics["perplexity"] for record in records.values()]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-2)
