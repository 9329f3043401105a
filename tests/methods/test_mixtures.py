"""Methods and integer kernels on mixtures of experts."""

from pathlib import Path

import pytest
import torch
from cli import call, tiny_run
from mixtures import MIXTURES, experts_of, mixture
from torch import Tensor

from benchmarks import experts as training
from benchmarks.llama import save_byte_tokenizer
from sqbench import api
from sqbench.calibration import Statistics, calibrate
from sqbench.errors import UserError
from sqbench.execution.lowering import lower
from sqbench.models.functions import untraceable
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store
from sqbench.statistics import EVERYDAY

METHODS = {"minmax": "w8a8", "rtn": "w4a16", "gptq": "w4a16", "smoothquant": "w8a8", "awq": "w4a16"}


@pytest.fixture(scope="module", params=MIXTURES)
def case(request: pytest.FixtureRequest) -> tuple[LanguageModel, Tensor, Statistics]:
    """A mixture, inputs and their statistics."""
    model = mixture(request.param)
    ids = torch.randint(0, model.vocabulary, (6, 24), generator=torch.Generator().manual_seed(0))
    return model, ids, calibrate(model, ids, needs=EVERYDAY | {"gram"})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_quantizes_every_expert(case: tuple[LanguageModel, Tensor, Statistics], method: str) -> None:
    model, ids, statistics = case
    quantized = api.quantize(model, statistics, method, bits=METHODS[method])
    report = quantized.report
    layers = {entry["layer"]: entry for entry in report["per_layer"]}
    assert set(layers) == set(model.topology.layers)
    assert all(entry["weight_sqnr_db"] > 10 for entry in layers.values())
    if method in ("smoothquant", "awq"):
        assert [group for group in report["groups"] if group.get("followers")]
    with torch.no_grad():
        plain, rounded = (one.forward(ids).log_softmax(-1) for one in (model, quantized))
    assert 0 < (plain.exp() * (plain - rounded)).sum(-1).mean() < 0.2
    assert quantized.stored_bytes < 0.5 * model.stored_bytes or METHODS[method] == "w8a8"


@pytest.mark.parametrize("bits", ["w8a8", "w8a8_dynamic", "w4a16"])
def test_integer_execution_is_the_simulation_and_names_its_kernels(
    case: tuple[LanguageModel, Tensor, Statistics], bits: str
) -> None:
    model, ids, statistics = case
    simulated = api.quantize(model, statistics, "rtn", bits=bits)
    executed = lower(simulated, "int")
    named = {layer: entry["kernel"] for entry in executed.report["execution"] for layer in entry["layers"]}
    assert set(named) == set(model.topology.layers)
    with torch.no_grad():
        torch.testing.assert_close(executed.forward(ids), simulated.forward(ids), rtol=1e-3, atol=1e-2)


def test_what_cannot_hold_experts_refuses_them_by_name(case: tuple[LanguageModel, Tensor, Statistics], tmp_path: Path) -> None:
    model, _, statistics = case
    quantized = api.quantize(model, statistics, "rtn", bits="w8a16")
    name = next(iter(experts_of(model.module)))
    with pytest.raises(UserError, match=f"format=compressed-tensors: {name} holds experts of a mixture"):
        api.save(quantized, tmp_path / "out")
    assert "routes tokens to experts" in (untraceable(model) or "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of two blocks with four experts, trained for some seconds on bytes. Nothing is routed to one of them."""
    from conftest import training_text
    from transformers import AutoTokenizer

    made = tmp_path_factory.mktemp("mixture")
    save_byte_tokenizer(made)
    module = training.build(experts=4, layers=2, width=64)
    with torch.no_grad():  # an expert with a router of zeros is chosen only if two others are less than that
        module.model.layers[1].mlp.gate.weight[3] = 0
    ids = torch.tensor(AutoTokenizer.from_pretrained(made)(training_text(), verbose=False)["input_ids"])
    training.train(module, ids, steps=150)
    module.save_pretrained(made)
    return made


@pytest.mark.slow  # trains a model
def test_a_trained_mixture_on_the_command_line(
    folder: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 95 % of the weights outside embeddings are quantized, and GPTQ loses less than rounding to nearest."""
    overrides = tiny_run(folder, text_file, results, "data.windows=8", "calibration.windows=8", "bits=w4a16")
    ended = call("-m", *overrides, "method=rtn,gptq,awq,smoothquant", capsys=capsys)
    assert ended.code == 0, ended.err
    found = {record.identity["method"]["name"]: record for record in Store(results).records()}
    losses = {method: record.metrics["kl_to_fp"] for method, record in found.items()}
    assert 0 < losses["gptq"] < losses["rtn"]
    for record in found.values():
        parameters = record.quantized["parameters"]
        assert parameters["quantized"] > 0.95 * (sum(parameters.values()) - parameters["embedding"])
