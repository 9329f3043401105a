"""Perplexity and divergence against plain transformers and plain definitions."""

import dataclasses
import math

import pytest
import torch

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import EVALUATIONS, PERPLEXITY, Result
from sqbench.evaluation.baseline import reference
from sqbench.evaluation.perplexity import EvaluationError, perplexity
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel


@pytest.fixture(scope="module")
def quantized(tiny: LanguageModel, statistics: Statistics) -> LanguageModel:
    return api.quantize(tiny, statistics, "rtn", bits="w3a16")


def logits(model: LanguageModel, windows: Windows) -> torch.Tensor:
    with torch.no_grad():
        return model.module(input_ids=windows.evaluation).logits[:, :-1].double()


def test_perplexity_is_that_of_transformers_own_loss(tiny: LanguageModel, windows: Windows, baseline: Result) -> None:
    with torch.no_grad():
        losses = [tiny.module(input_ids=ids.unsqueeze(0), labels=ids.unsqueeze(0)).loss.item() for ids in windows.evaluation]
    assert baseline.metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert baseline.samples["nll"].tolist() == pytest.approx(losses, rel=1e-5)
    assert (baseline.samples["tokens"] == 63).all()


def test_bits_per_byte_counts_the_bytes_of_what_is_predicted(tiny: LanguageModel, windows: Windows, baseline: Result) -> None:
    assert windows.evaluation_bytes == 16 * 63  # one byte a token
    assert baseline.metrics["bits_per_byte"] == pytest.approx(math.log2(baseline.metrics["perplexity"]), rel=1e-6)


def test_divergence_and_agreement_are_their_definitions(
    tiny: LanguageModel, quantized: LanguageModel, windows: Windows, baseline: Result
) -> None:
    result = perplexity(quantized, windows, baseline)
    p, q = (logits(model, windows).log_softmax(-1) for model in (tiny, quantized))
    kl = (p.exp() * (p - q)).sum(-1)
    assert result.metrics["kl_to_fp"] == pytest.approx(kl.mean().item(), rel=1e-3)
    assert result.samples["kl"].tolist() == pytest.approx(kl.mean(1).tolist(), rel=1e-3)
    assert result.metrics["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert result.samples["nll_fp"].tolist() == pytest.approx(baseline.samples["nll"].tolist(), rel=1e-6)


def test_models_without_a_separate_head_give_the_same_numbers(
    tiny: LanguageModel, quantized: LanguageModel, windows: Windows, baseline: Result
) -> None:
    def whole(model: LanguageModel) -> LanguageModel:
        copy = dataclasses.replace(model)
        copy.__dict__["head"] = None
        return copy

    base = perplexity(whole(tiny), windows)
    assert base.kept is None
    expected, found = perplexity(quantized, windows, baseline), perplexity(whole(quantized), windows, base)
    for name, value in expected.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_the_float_model_does_not_diverge_from_itself(tiny: LanguageModel, windows: Windows, baseline: Result) -> None:
    result = perplexity(tiny, windows, baseline)
    assert result.metrics["kl_to_fp"] == pytest.approx(0, abs=1e-6)
    assert result.metrics["agreement"] == 1
    assert result.metrics["perplexity"] == baseline.metrics["perplexity"]


def test_the_baseline_is_computed_once(tiny: LanguageModel, windows: Windows, baseline: Result, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    first = reference(tiny, windows, "perplexity", tmp_path)
    broken = dataclasses.replace(PERPLEXITY, run=lambda *args: pytest.fail("computed again"))
    monkeypatch.setitem(EVALUATIONS, "perplexity", broken)
    again = reference(tiny, windows, "perplexity", tmp_path)
    assert again.metrics == first.metrics
    assert again.samples.equals(first.samples)
    assert again.kept is not None
    assert baseline.kept is not None
    assert all(torch.equal(again.kept[name], value) for name, value in baseline.kept.items())


def test_nan_loss_names_the_layer(tiny: LanguageModel, windows: Windows) -> None:
    module = share(tiny.module)
    layer = module.get_submodule("model.layers.1.self_attn.o_proj")
    layer.weight = torch.nn.Parameter(torch.full_like(layer.weight, float("inf")), requires_grad=False)
    with pytest.raises(
        EvaluationError, match=r"window 0 is nan; the first layer that wrote NaN or infinity is model\.layers\.1\.self_attn\.o_proj"
    ):
        perplexity(tiny.with_module(module, None), windows)


def test_weight_bytes_are_those_of_the_format(tiny: LanguageModel, statistics: Statistics, baseline: Result) -> None:
    from sqbench.quant.layers import stored_bytes

    linear = sum(tiny.module.get_submodule(name).weight.numel() for name in tiny.topology.layers)
    rest = baseline.metrics["weight_bytes"] - 4 * linear
    w8 = stored_bytes(api.quantize(tiny, statistics, "rtn", bits="w8a16").module)
    w4 = stored_bytes(api.quantize(tiny, statistics, "rtn", bits="w4a16").module)
    channels = sum(tiny.module.get_submodule(name).weight.shape[0] for name in tiny.topology.layers)
    assert w8 == rest + linear + 4 * channels
    assert w4 == rest + linear // 2 + linear // 64 * 4 + linear // 64 // 2
