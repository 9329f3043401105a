"""The divergence from a summary of the float model, against its definition in float64."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import Result, divergence
from sqbench.evaluation.perplexity import perplexity
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel

WIDTH, WORDS, TOKENS = 24, 300, divergence.CHUNK + 50


def with_head(model: LanguageModel, head: nn.Module | None) -> LanguageModel:
    copy = dataclasses.replace(model)
    copy.__dict__["head"] = head
    return copy


def states(seed: int) -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def head(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WORDS, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("moved", [0.0, 0.003, 0.3])
def test_from_a_summary_as_by_definition(tiny: LanguageModel, bias: bool, moved: float) -> None:
    linear = head(bias)
    model, target = with_head(tiny, linear), torch.arange(TOKENS) % WORDS
    h_fp = 3 * states(0)
    h = h_fp + moved * states(1)
    own, known = divergence.predict(model, h_fp, target)
    found = divergence.compare(model, h, target, known)
    exact = nn.Linear(WIDTH, WORDS, bias=bias, dtype=torch.float64)
    exact.load_state_dict(linear.state_dict())
    exact.requires_grad_(False)
    p, q = (exact(x.double()).log_softmax(-1) for x in (h_fp, h))
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(own["nll"].double(), -p[torch.arange(TOKENS), target], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["nll"].double(), -q[torch.arange(TOKENS), target], rtol=1e-5, atol=1e-6)
    rounding = 8 * torch.finfo(torch.float32).eps * exact(h.double()).abs().max().item()  # of float32 logits, in nats
    assert (found["kl"] - kl).abs().max() < rounding
    assert found["kl"].mean().item() == pytest.approx(kl.mean().item(), rel=1e-4, abs=4 * rounding / TOKENS**0.5)
    assert torch.equal(found["agreement"], p.argmax(-1) == q.argmax(-1))


def test_from_a_summary_as_from_logits(tiny: LanguageModel) -> None:
    model, target = with_head(tiny, head(True)), torch.arange(TOKENS) % WORDS
    h_fp, h = states(0), states(0) + 0.1 * states(1)
    found = divergence.compare(model, h, target, divergence.predict(model, h_fp, target)[1])
    expected = divergence.compare_logits(model, h, target, model, h_fp)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=3e-6, msg=name)


def test_heads_are_compared_by_what_they_do(tiny: LanguageModel) -> None:
    linear = head(False)
    other = head(False)
    other.weight = nn.Parameter(linear.weight.clone(), requires_grad=False)
    assert divergence.same_head(with_head(tiny, nn.Sequential(other)), with_head(tiny, linear))
    other.weight[7, 3] += 0.1
    assert not divergence.same_head(with_head(tiny, other), with_head(tiny, linear))
    assert not divergence.same_head(with_head(tiny, head(True)), with_head(tiny, linear))  # a bias
    assert not divergence.same_head(with_head(tiny, linear), with_head(tiny, nn.Sequential(linear)))  # no weight to sum over
    assert not divergence.same_head(with_head(tiny, None), with_head(tiny, linear))


def test_a_model_with_another_head_is_compared_by_its_logits(tiny: LanguageModel, windows: Windows, baseline: Result) -> None:
    module = share(tiny.module)
    module.lm_head.weight = nn.Parameter(1.1 * module.lm_head.weight, requires_grad=False)
    changed = tiny.with_module(module, None)
    with torch.no_grad():
        p, q = (model.module(input_ids=windows.evaluation).logits[:, :-1].double().log_softmax(-1) for model in (tiny, changed))
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert perplexity(changed, windows, baseline).metrics["kl_to_fp"] == pytest.approx(kl, rel=1e-3)


def test_half_precision_keeps_hidden_states(tiny: LanguageModel, statistics: Statistics, windows: Windows) -> None:
    half = tiny.with_module(copy.deepcopy(tiny.module).bfloat16(), None)
    few = dataclasses.replace(windows, evaluation=windows.evaluation[:2])
    base = perplexity(half, few)
    assert base.kept is not None
    assert set(base.kept) == {"outputs"}
    assert perplexity(half, few, base).metrics["kl_to_fp"] == 0
    quantized = api.quantize(half, statistics, "rtn", bits="w3a16")
    assert perplexity(quantized, few, base).metrics["kl_to_fp"] > 0.001
