"""Statistics of experts: those of the tokens that are routed to them, or of all tokens where these are too few."""

from pathlib import Path

import families
import pytest
import torch
from torch import Tensor

from sqbench import api
from sqbench.calibration import Statistics, calibrate
from sqbench.calibration.routed import FEW
from sqbench.models.experts import Experts, split_experts
from sqbench.models.language import LanguageModel
from sqbench.statistics import EVERYDAY

NEVER = "model.layers.0.mlp.experts.3"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A gpt-oss whose first router sends no token to its last expert."""
    made = families.build("GptOss", **families.LLAMA, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    made.module.get_input_embeddings().weight.mul_(50)
    for block in made.module.model.layers:  # tokens differ enough to go to all experts
        block.mlp.router.weight.mul_(20)
        block.mlp.router.bias.zero_()
    made.module.model.layers[0].mlp.router.bias[3] = -1e4
    split_experts(made.module)
    return made


@pytest.fixture(scope="module")
def ids(model: LanguageModel) -> Tensor:
    return torch.randint(0, model.vocabulary, (6, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def statistics(model: LanguageModel, ids: Tensor) -> Statistics:
    return calibrate(model, ids, needs=EVERYDAY | {"gram"})


def read_by(model: LanguageModel, ids: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The hidden states of all tokens that a module with experts reads, and the experts of each token."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.module.get_submodule(name).register_forward_pre_hook(lambda part, args: seen.append(args[:2]))
    with torch.no_grad():
        model.body(ids)
    handle.remove()
    return seen[0]


def test_an_expert_has_the_statistics_of_its_own_tokens(model: LanguageModel, ids: Tensor, statistics: Statistics) -> None:
    for name, experts in ((name, part) for name, part in model.module.named_modules() if isinstance(part, Experts)):
        hidden, chosen = read_by(model, ids, name)
        for number in range(experts.count):
            own = hidden[(chosen == number).any(1)]
            stats = statistics.inputs[f"{name}.{number}.gate_proj"]
            if len(own) < FEW:
                assert stats.routed == len(own)
                continue
            assert stats.routed is None
            assert stats.tokens == len(own)
            torch.testing.assert_close(stats.low, own.amin(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stats.high, own.amax(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stats.gram.matrix[0], own.T @ own, rtol=1e-3, atol=1e-3)


def test_an_expert_without_tokens_reads_those_of_its_neighbours(model: LanguageModel, ids: Tensor, statistics: Statistics) -> None:
    hidden, chosen = read_by(model, ids, NEVER.rpartition(".")[0])
    assert not (chosen == 3).any()
    stats = statistics.inputs[f"{NEVER}.gate_proj"]
    assert (stats.routed, stats.tokens) == (0, ids.numel())
    torch.testing.assert_close(stats.high, hidden.amax(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.gram.matrix[0], hidden.T @ hidden, rtol=1e-3, atol=1e-3)
    expert, between = (model.module.get_submodule(name) for name in (NEVER, f"{NEVER.rpartition('.')[0]}.between"))
    with torch.no_grad():
        both = torch.stack([expert.gate_proj(hidden), expert.up_proj(hidden)], -1).flatten(-2)
        inside = between(both)
    torch.testing.assert_close(statistics.inputs[f"{NEVER}.down_proj"].high, inside.amax(0), rtol=1e-4, atol=1e-5)


def test_every_site_has_statistics_and_all_other_layers_saw_all_tokens(
    model: LanguageModel, ids: Tensor, statistics: Statistics
) -> None:
    assert set(statistics.inputs) == set(model.topology.sites)
    outside = [stats for site, stats in statistics.inputs.items() if ".experts." not in site]
    assert {stats.tokens for stats in outside} == {ids.numel()}
    assert {stats.routed for stats in outside} == {None}


def test_the_cache_knows_which_experts_had_few_tokens(
    model: LanguageModel, ids: Tensor, statistics: Statistics, tmp_path: Path
) -> None:
    calibrate(model, ids, folder=tmp_path)  # without matrices, which the next line collects alone
    computed = calibrate(model, ids, needs=EVERYDAY | {"gram"}, folder=tmp_path)
    found = calibrate(model, ids, needs=EVERYDAY | {"gram"}, folder=tmp_path)
    for site, stats in statistics.inputs.items():
        for other in (computed.inputs[site], found.inputs[site]):
            assert other.routed == stats.routed
            assert other.tokens == stats.tokens
            assert torch.equal(other.gram.matrix, stats.gram.matrix)


@pytest.mark.parametrize("propagate", [False, True])
def test_the_report_names_experts_with_few_tokens(
    model: LanguageModel, statistics: Statistics, propagate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    report = api.quantize(model, statistics, "gptq", bits="w4a16_channel", propagate=propagate).report
    assert {"expert": NEVER, "tokens": 0} in report["unreached"]
    assert all(entry["tokens"] < FEW for entry in report["unreached"])
    assert len({entry["expert"] for entry in report["unreached"]}) == len(report["unreached"])
    (warning,) = (record.message for record in caplog.records if "calibration tokens" in record.message)
    assert f"fewer than {FEW} calibration tokens" in warning
    assert f"{NEVER}, by 0" in warning


def test_an_expert_with_enough_tokens_is_not_mentioned(model: LanguageModel) -> None:
    ids = torch.randint(0, model.vocabulary, (40, 30), generator=torch.Generator().manual_seed(1))
    report = api.quantize(model, calibrate(model, ids), "rtn", bits="w8a8").report
    assert [entry["expert"] for entry in report["unreached"]] == [NEVER]
