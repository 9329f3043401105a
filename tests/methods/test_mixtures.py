"""Methods and integer kernels on mixtures of experts."""

from pathlib import Path

import pytest
import torch
from cli import call, tiny_run
from mixtures import MIXTURES, mixture
from torch import Tensor

from benchmarks import experts as training
from benchmarks.llama import save_byte_tokenizer
from sqbench import api
from sqbench.calibration import Statistics, calibrate
from sqbench.execution.lowering import lower
from sqbench.models.functions import untraceable
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store
from sqbench.statistics import EVERYDAY

METHODS = {"minmax": "w8a8", "rtn": "w4a16_channel", "gptq": "w4a16_channel", "smoothquant": "w8a8", "awq": "w4a16_channel"}


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


@pytest.mark.parametrize("bits", ["w8a8", "w8a8_dynamic", "w4a16_channel"])
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


def test_runtimes_refuse_experts_by_name(case: tuple[LanguageModel, Tensor, Statistics]) -> None:
    assert "routes tokens to experts" in (untraceable(case[0]) or "")


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


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random gpt-oss over bytes, whose files hold stacked experts. No token is routed to one of its experts."""
    from transformers import GptOssConfig, GptOssForCausalLM

    made = tmp_path_factory.mktemp("stored")
    save_byte_tokenizer(made)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    module = GptOssForCausalLM(
        GptOssConfig(vocab_size=256, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes, **heads)
    )
    with torch.no_grad():
        module.model.layers[1].mlp.router.bias[2] = -1e4
    module.save_pretrained(made)
    return made


def test_the_command_line_names_an_expert_that_is_never_reached(
    stored: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record has its name, and numbers are the same where one block at a time is in memory."""
    found = {}
    for blockwise in ("false", "true"):
        results = tmp_path / blockwise
        overrides = tiny_run(
            stored, text_file, results, "method=smoothquant", "rounding=gptq", "bits=w4a8", f"blockwise={blockwise}"
        )
        ended = call(*overrides, capsys=capsys)
        assert ended.code == 0, ended.err
        assert "were reached by fewer than 32 calibration tokens" in ended.err
        assert "model.layers.1.mlp.experts.2, by 0" in ended.err
        (found[blockwise],) = Store(results).records()
    assert {"expert": "model.layers.1.mlp.experts.2", "tokens": 0} in found["true"].quantized["unreached"]
    assert found["true"].quantized["unreached"] == found["false"].quantized["unreached"]
    assert found["true"].metrics == found["false"].metrics
    assert found["true"].quantized["coverage"] > 0.5


def test_layers_of_an_expert_can_be_named(stored: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = tiny_run(stored, text_file, results, "method=rtn", "bits=w8a16", "layers=[model.layers.0.mlp.experts.1]")
    assert call(*overrides, capsys=capsys).code == 0
    (record,) = Store(results).records()
    names = [entry["layer"].rpartition(".")[2] for entry in record.quantized["per_layer"]]
    assert names == ["gate_proj", "up_proj", "down_proj"]


def test_mixed_precision_refuses_a_mixture(
    stored: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = tiny_run(stored, text_file, results, "method=rtn", "bits=w4a16", "mixed=auto", "budget=5")
    ended = call(*overrides, capsys=capsys)
    assert ended.code != 0
    assert "is a mixture of experts, and the sample reaches only some of them" in ended.err
