"""The token embedding and the output matrix in formats of their own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernels import BACKENDS

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.codec import round_trip
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.models.stream_loading import stream_language_model
from sqbench.quant.layers import stored_bytes
from sqbench.recipes.configured import named

Quantize = Callable[[LanguageModel, Scheme], LanguageModel]

INT8 = Format(8, granularity="channel")
INT4 = Format(4, symmetric=False, granularity="group", group_size=16)
W8 = Scheme("w8a16", weights=INT8)


@pytest.fixture(scope="module")
def untied(tiny: LanguageModel) -> LanguageModel:
    """The tiny model with an output matrix of its own."""
    module = copy.deepcopy(tiny.module)
    module.config.tie_word_embeddings = False
    old = module.lm_head.weight
    generator = torch.Generator().manual_seed(0)
    module.lm_head.weight = torch.nn.Parameter(old.detach() + 0.01 * torch.randn(old.shape, generator=generator))
    return LanguageModel(module, tiny.name, "untied", tokenizer=tiny.tokenizer)


@pytest.fixture(scope="module")
def quantized(statistics: Statistics) -> Quantize:
    """Round-to-nearest of a model under a scheme."""
    return lambda model, scheme: api.quantize(model, statistics, named("rtn"), scheme)  # type: ignore[return-value]


def test_each_slot_has_its_own_format(untied: LanguageModel, quantized: Quantize) -> None:
    model = quantized(untied, replace(W8, embedding=INT8, head=INT4))
    embedding, head = (untied.module.get_submodule(name).weight for name in untied.tables().values())
    model.forward(model.example())
    assert torch.equal(model.module.get_input_embeddings().weight, round_trip(embedding, INT8))
    assert torch.equal(model.module.get_output_embeddings().weight, round_trip(head, INT4))
    assert [(entry["slot"], entry["format"]) for entry in model.report["slots"]] == [("embedding", str(INT8)), ("head", str(INT4))]
    assert model.report["coverage"] == 1.0
    assert model.report["parameters"]["embedding"] == model.report["parameters"]["head"] == 0


def test_logits_are_those_of_the_rounded_matrices(untied: LanguageModel, quantized: Quantize) -> None:
    model = quantized(untied, replace(W8, embedding=INT8, head=INT4))
    plain = quantized(untied, W8)
    module = copy.deepcopy(plain.module)
    plain.forward(plain.example())
    for name, fmt in zip(untied.tables().values(), (INT8, INT4), strict=True):
        table = module.get_submodule(name)
        table.weight = torch.nn.Parameter(round_trip(untied.module.get_submodule(name).weight.detach(), fmt))
    expected = plain.with_module(module, None).forward(plain.example())
    assert torch.equal(model.forward(model.example()), expected)
    assert not torch.equal(plain.forward(plain.example()), expected)


def test_a_tied_matrix_is_stored_once(tiny: LanguageModel, quantized: Quantize) -> None:
    plain, both = quantized(tiny, W8), quantized(tiny, replace(W8, head=INT8))
    rows, columns = tiny.module.get_input_embeddings().weight.shape
    saved = stored_bytes(plain.module) - stored_bytes(both.module)
    assert saved == rows * columns * 4 - INT8.stored_bytes(rows, columns)
    embedding, head = both.module.get_input_embeddings().weight, both.module.get_output_embeddings().weight
    assert embedding.data_ptr() == head.data_ptr()
    assert both.report["slots"][0]["slot"] == "embedding and head"
    same = quantized(tiny, replace(W8, embedding=INT8))
    assert torch.equal(same.forward(tiny.example()), both.forward(tiny.example()))


def test_a_tied_matrix_has_one_format(tiny: LanguageModel, quantized: Quantize) -> None:
    with pytest.raises(UserError, match="must be equal"):
        quantized(tiny, replace(W8, embedding=INT8, head=INT4))


def test_a_group_that_does_not_divide_the_width_is_refused(tiny: LanguageModel, quantized: Quantize) -> None:
    with pytest.raises(UserError, match=r"bits.embedding.group_size=7 does not divide"):
        quantized(tiny, replace(W8, embedding=replace(INT4, group_size=7)))


def test_a_weight_that_is_not_finite_is_named(untied: LanguageModel, quantized: Quantize) -> None:
    module = copy.deepcopy(untied.module)
    with torch.no_grad():
        module.lm_head.weight[3, 1] = torch.nan
    broken = LanguageModel(module, untied.name, "broken", tokenizer=untied.tokenizer)
    with pytest.raises(UserError, match=r"lm_head: its weight has 1 values that are NaN or infinite"):
        quantized(broken, replace(W8, head=INT8))


def test_layers_may_stay_in_float(untied: LanguageModel, quantized: Quantize) -> None:
    model = quantized(untied, Scheme("fp", embedding=INT8))
    assert torch.equal(model.module.get_output_embeddings().weight, untied.module.get_output_embeddings().weight)
    assert model.report["slots"][0]["module"] == untied.tables()["embedding"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_are_executed_by_either_backend(untied: LanguageModel, quantized: Quantize, backend: str) -> None:
    model = quantized(untied, replace(W8, embedding=INT8, head=INT8))
    check_execution(model, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tied_head_is_executed_like_any_layer(tiny: LanguageModel, quantized: Quantize, backend: str) -> None:
    check_execution(quantized(tiny, replace(W8, embedding=INT8)), backend)


def check_execution(model: LanguageModel, backend: str) -> None:
    lowered, ids = lower(model, backend), model.example()
    torch.testing.assert_close(lowered.forward(ids), model.forward(ids), rtol=1e-4, atol=1e-4)
    kernel = {layer: entry["kernel"] for entry in lowered.report["execution"] for layer in entry["layers"]}
    layers = [name for name in kernel if name != model.tables()["head"]]
    assert kernel[model.tables()["head"]] == kernel[layers[0]]
    assert (kernel[layers[0]] == "simulated") == (backend == "sim")
    assert lowered.stored_bytes == model.stored_bytes


def test_slots_of_a_model_on_disk_are_those_of_the_model_in_memory(
    tiny: LanguageModel, tiny_folder: Path, statistics: Statistics
) -> None:
    scheme = replace(W8, embedding=INT8)
    said = {"name": "tiny", "fingerprint": "tiny", "dtype": "float32", "trust_remote_code": False, "keep": ()}
    streamed = stream_language_model(tiny_folder, torch.device("cpu"), **said)
    ids = tiny.example()
    models = [api.quantize(model, statistics, named("rtn"), scheme) for model in (tiny, streamed)]
    logits = [next(iter(model.forwards([ids]))) for model in models]
    assert torch.equal(*logits)
    assert models[0].stored_bytes == models[1].stored_bytes
    assert models[0].report["slots"] == models[1].report["slots"]
    assert models[0].report["coverage"] == models[1].report["coverage"]
