"""The token embedding and the output matrix in formats of their own."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.formats.codec import round_trip
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
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
