"""Generation: beam search against that of transformers, figures against their definitions, all of it through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from cli import Ended
from hypothesis import given
from hypothesis import strategies as st

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.collect import CollectConfig, collect
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation import Result
from sqbench.evaluation.base import EvaluationError
from sqbench.evaluation.baseline import reference
from sqbench.evaluation.decoding import beam_search, greedy
from sqbench.evaluation.generation import GENERATION, generation, repetition
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store
from sqbench.reporting.frame import results_frame

Command = Callable[..., Ended]

SMALL = {"prompt": 24, "decode": 12, "batch": 5}


@pytest.fixture(scope="module")
def quantized(tiny: LanguageModel, statistics: Statistics) -> LanguageModel:
    return api.quantize(tiny, statistics, "rtn", bits="w3a16")


def likelihood(model: LanguageModel, ids: torch.Tensor, read: int) -> torch.Tensor:
    """Sum of log-probabilities [texts] of what follows the first `read` tokens of texts [texts, tokens]."""
    with torch.no_grad():
        logp = model.module(input_ids=ids).logits.double().log_softmax(-1)
    return logp[:, read - 1 : -1].gather(2, ids[:, read:].unsqueeze(2)).squeeze(2).sum(1)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beam_search_is_that_of_generate(tiny: LanguageModel, windows: Windows, beams: int) -> None:
    ids = windows.evaluation[:6, :30]
    expected = tiny.module.generate(
        ids,
        **{"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "num_beams": beams},
        **{"eos_token_id": None, "pad_token_id": 0},
    )
    texts, scores = beam_search(tiny.module, ids, 12, beams)
    assert torch.equal(texts, expected[:, 30:])
    torch.testing.assert_close(scores.double(), likelihood(tiny, expected, 30), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["Gemma2", "GPT2"])
def test_caches_of_other_families_follow_their_beams(family: str) -> None:
    torch.manual_seed(0)
    llama = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4}, "Gemma2": {**llama, "head_dim": 8, "sliding_window": 16}}[family]
    config = getattr(transformers, f"{family}Config")(vocab_size=101, **sizes)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(101, (3, 24))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "num_beams": 3}
    expected = module.generate(ids, **options, eos_token_id=None, pad_token_id=0)
    assert torch.equal(beam_search(module, ids, 12, 3)[0], expected[:, 24:])


def test_as_many_beams_as_there_are_tokens_find_the_likeliest_pair(tiny: LanguageModel, windows: Windows) -> None:
    prompt = windows.evaluation[3, :20]
    every = torch.cat([prompt.expand(256, -1), torch.arange(256).unsqueeze(1)], dim=1)
    with torch.no_grad():
        logp = tiny.module(input_ids=every).logits[:, -2:].double().log_softmax(-1)
    scores = logp[0, 0].unsqueeze(1) + logp[:, 1]
    texts, found = beam_search(tiny.module, prompt.unsqueeze(0), 2, 256)
    assert texts[0].tolist() == [int(scores.argmax()) // 256, int(scores.argmax()) % 256]
    assert found.item() == pytest.approx(scores.max().item(), abs=1e-4)


def test_one_beam_is_greedy_decoding_and_prompts_do_not_mix(tiny: LanguageModel, windows: Windows) -> None:
    ids = windows.evaluation[:4, :30]
    texts, _ = beam_search(tiny.module, ids, 10, 1)
    assert torch.equal(texts, torch.stack([greedy(tiny.module, one.unsqueeze(0), 10) for one in ids]))
    several, _ = beam_search(tiny.module, ids, 10, 3)
    assert torch.equal(several, torch.cat([beam_search(tiny.module, one.unsqueeze(0), 10, 3)[0] for one in ids]))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40))
def test_repetition_is_the_share_of_groups_that_stood_before(tokens: list[int]) -> None:
    groups = [tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)]
    again = sum(group in groups[:at] for at, group in enumerate(groups))
    assert repetition(torch.tensor(tokens)) == pytest.approx(again / len(groups))


def test_a_loop_repeats_and_a_list_does_not() -> None:
    assert repetition(torch.arange(20)) == 0
    assert repetition(torch.zeros(20, dtype=torch.long)) == pytest.approx(16 / 17)


@pytest.mark.parametrize("beams", [1, 3])
def test_figures_are_their_definitions(tiny: LanguageModel, quantized: LanguageModel, windows: Windows, beams: int) -> None:
    base = generation(tiny, windows, beams=beams, **SMALL)
    result = generation(quantized, windows, GENERATION.as_reference(base), beams=beams, **SMALL)
    prompts = windows.evaluation[:, :24]
    ours, theirs = (beam_search(model.module, prompts, 12, beams)[0] for model in (quantized, tiny))
    samples = result.samples
    for number, (a, b) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True)):
        row = samples.iloc[number]
        assert (row["window"], row["tokens"], row["exact"]) == (number, 12, a == b)
        assert row["prefix"] == next((at for at in range(12) if a[at] != b[at]), 12)
        assert row["agreement"] == pytest.approx(sum(x == y for x, y in zip(a, b, strict=True)) / 12)
        assert (row["text"], row["text_fp"]) == (tiny.tokenizer.decode(a), tiny.tokenizer.decode(b))
        assert (row["repetition"], row["repetition_fp"]) == (repetition(torch.tensor(a)), repetition(torch.tensor(b)))
    for column, text in (("loglik", ours), ("loglik_fp", theirs)):  # either text judged by the float model
        expected = likelihood(tiny, torch.cat([prompts, text], dim=1), 24) / 12
        torch.testing.assert_close(torch.tensor(samples[column].to_numpy()), expected, rtol=1e-5, atol=1e-5)
    assert 0 < result.metrics["exact_match"] < 1  # 3 bits: some texts survive, some do not
    for metric, column in (("exact_match", "exact"), ("prefix", "prefix"), ("loglik", "loglik"), ("repetition", "repetition")):
        assert result.metrics[metric] == pytest.approx(samples[column].mean())
    differences = GENERATION.differences(samples, 200, 0.95)
    assert set(differences) == {"loglik", "repetition"}
    assert differences["loglik"].value == pytest.approx(result.metrics["loglik"] - base.metrics["loglik"])


def test_what_the_float_model_writes_it_finds_likelier_with_more_beams(tiny: LanguageModel, windows: Windows) -> None:
    found = [generation(tiny, windows, beams=beams, **SMALL).metrics["loglik"] for beams in (1, 4, 16)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_float_model_agrees_with_itself(tiny: LanguageModel, windows: Windows) -> None:
    base = GENERATION.as_reference(generation(tiny, windows, beams=2, **SMALL))
    again = generation(tiny, windows, base, beams=2, **SMALL)
    pd.testing.assert_frame_equal(again.samples, base.samples, check_like=True)
    assert again.metrics == base.metrics
    assert (base.metrics["exact_match"], base.metrics["prefix"], base.metrics["agreement"]) == (1, 12, 1)
    assert GENERATION.differences(again.samples, 200, 0.95)["loglik"].value == 0


def test_a_cached_reference_is_the_same_and_its_settings_are_told_apart(
    tiny: LanguageModel, quantized: LanguageModel, windows: Windows, tmp_path: Path
) -> None:
    fresh, read, wide = (reference(tiny, windows, "generation", tmp_path, beams=beams, **SMALL) for beams in (1, 1, 2))
    pd.testing.assert_frame_equal(read.samples, fresh.samples)
    assert read.metrics == fresh.metrics != wide.metrics
    compared: list[Result] = [generation(quantized, windows, base, beams=1, **SMALL) for base in (fresh, read)]
    pd.testing.assert_frame_equal(compared[0].samples, compared[1].samples)


def test_a_model_that_writes_no_numbers_is_named_by_its_layer(tiny: LanguageModel, windows: Windows) -> None:
    module = share(tiny.module)
    norm = module.model.layers[1].input_layernorm
    norm.weight = torch.nn.Parameter(norm.weight * torch.nan, requires_grad=False)
    with pytest.raises(EvaluationError, match=r"what follows prompt 0 .* is nan; .*model\.layers\.1\.input_layernorm"):
        generation(tiny.with_module(module, None), windows, beams=1, **SMALL)


def test_more_beams_than_tokens_are_refused(tiny: LanguageModel, windows: Windows) -> None:
    with pytest.raises(UserError, match=r"eval\.beams=257: tiny knows 256 tokens; use at most as many"):
        generation(tiny, windows, beams=257, **SMALL)


LINE = ("eval=generation", "eval.prompt=24", "eval.decode=12")


@pytest.mark.slow
def test_both_backends_and_several_widths_through_the_command_line(command: Command, results: Path) -> None:
    sweep = ("-m", "method=fp,rtn", "bits=w4a16", "backend=sim,int", *LINE, "eval.beams=1,3")
    ended = command(*sweep)
    assert ended.code == 0, ended.err
    assert "6 done" in ended.out
    assert "beams=3" in ended.out
    found = list(Store(results).records())
    assert {record.identity["eval"]["beams"] for record in found} == {1, 3}
    for record in found:
        samples = pd.read_parquet(results / "runs" / record.point_id / "samples.parquet")
        assert len(samples) == 4
        assert samples["exact"].mean() == record.metrics["exact_match"]
        assert record.delta["loglik"]["value"] == pytest.approx(record.metrics["loglik"] - record.baseline["loglik"])
        assert samples["text"].map(len).gt(0).all()
    frame = results_frame(found)
    table = frame[(frame["metric"] == "loglik") & (frame["method"] == "rtn")]
    assert sorted(zip(table["beams"], table["backend"], strict=True)) == [(1, "int"), (1, "sim"), (3, "int"), (3, "sim")]
    assert set(table["variant"]) == {""}
    assert sorted(frame[(frame["metric"] == "loglik") & (frame["method"] == "fp")]["beams"]) == [1, 3]
    text, _ = collect(CollectConfig(str(results), rows=["method", "backend"], columns=["beams"], metric="exact_match"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert cells[0] == ["method", "backend", "1", "3"]
    assert cells[2] == ["fp", "", "100.0", "100.0"]
    assert [line[:2] for line in cells[3:]] == [["rtn", "int"], ["rtn", "sim"]]
    before = {record.point_id: record.metrics for record in found}
    assert "6 done" in command(*sweep, "force=true").out
    assert {record.point_id: record.metrics for record in Store(results).records()} == before  # to the last bit


@pytest.mark.parametrize(("changes", "message"), [
    ("eval.beams=0", "eval.beams=0: must be 1 or more"),
    ("eval.decode=3", "eval.decode=3: must be 4 or more, repetition counts groups of 4 tokens"),
    ("eval.prompt=65", "eval.prompt=65: a prompt begins a window; use data.window=64 or less"),
    ("eval.prompt=64 eval.decode=65", "eval.prompt=64 eval.decode=65: "),
    ("model=vit_nano data=mnist5k", "eval=generation: is for text, "),
])  # fmt: skip
def test_what_cannot_be_written_is_refused(command: Command, results: Path, changes: str, message: str) -> None:
    ended = command(*LINE, *changes.split(" "))
    assert (ended.code, ended.out) == (2, "")
    assert f"error: {message}" in ended.err
    assert not list(results.glob("runs/*"))


def test_texts_of_any_kind_survive_a_record(command: Command, results: Path) -> None:
    assert command("method=rtn", "bits=w3a16", *LINE).code == 0
    (record,) = Store(results).records()
    samples = pd.read_parquet(results / "runs" / record.point_id / "samples.parquet")
    assert json.loads(json.dumps(samples["text"].tolist())) == samples["text"].tolist()
