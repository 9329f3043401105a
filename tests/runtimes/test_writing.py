"""Language models that write text in runtimes: the KV cache of their graphs, and evaluations that decode."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli import Ended
from families import gpt2
from runtimes.agreement import apart

from sqbench import api
from sqbench.evaluation.decoding import Decoder, beam_search, greedy
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

Command = Callable[..., Ended]
WEIGHTS = Scheme("w8a16", Format(8, granularity="channel"))


def in_runtime(model: LanguageModel, backend: str) -> tuple[LanguageModel, LanguageModel]:
    """A model with quantized weights, simulated and in a runtime."""
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", WEIGHTS)
    simulated, executed = lower(quantized, "sim"), lower(quantized, backend)
    assert isinstance(simulated, LanguageModel)
    assert isinstance(executed, LanguageModel)
    return simulated, executed


@pytest.fixture(scope="module", params=["tiny", pytest.param("gpt2", marks=pytest.mark.slow)])
def family(request: pytest.FixtureRequest) -> LanguageModel:
    """A trained Llama, and a model with learned positions."""
    found: LanguageModel = gpt2() if request.param == "gpt2" else request.getfixturevalue("tiny")
    return found


def test_the_same_text_is_written(backend: str, tiny: LanguageModel) -> None:
    simulated, executed = in_runtime(tiny, backend)
    prompts = simulated.example()
    assert torch.equal(greedy(executed.module, prompts[:1], 12), greedy(simulated.module, prompts[:1], 12))
    (texts, scores), (expected, wanted) = (beam_search(one.module, prompts, 8, beams=3) for one in (executed, simulated))
    assert torch.equal(texts, expected)
    assert torch.allclose(scores, wanted, atol=1e-3)


@torch.no_grad()
def test_a_cache_gives_what_a_whole_prompt_gives(backend: str, family: LanguageModel) -> None:
    simulated, executed = in_runtime(family, backend)
    ids = simulated.example()
    assert apart(executed, simulated, ids) < 1e-4
    wanted = executed.forward(ids)
    for parts in ((1, 11), (7, 1, 1, 3)):
        decoder = Decoder(executed.module)
        for part in ids.split(parts, dim=1):
            logits = decoder.read(part)
        assert decoder.cache.get_seq_length() == ids.shape[1]
        assert torch.allclose(logits, wanted[:, -1], atol=1e-4 * float(wanted.abs().max()))


def test_transformers_writes_after_padded_prompts(backend: str, tiny: LanguageModel) -> None:
    """As lm-eval's tasks that ask for text do."""
    simulated, executed = in_runtime(tiny, backend)
    ids = simulated.example()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 2):
        texts, expected = (one.module.generate(ids, num_beams=beams, **options) for one in (executed, simulated))
        assert torch.equal(texts, expected)


@pytest.mark.slow
def test_evaluations_that_write_text_through_the_command_line(backend: str, command: Command, results: Path) -> None:
    words = ("method=rtn", "bits=w8a16", f"backend=sim,{backend}")
    ended = command("-m", *words, "eval=generation", "eval.prompt=8", "eval.decode=6")
    assert ended.code == 0, ended.err
    own, sim = (record.metrics for record in Store(results).records() if record.quantized)
    assert own["agreement"] == pytest.approx(sim["agreement"])
    assert own["loglik"] == pytest.approx(sim["loglik"], rel=1e-3)
    ended = command(
        "method=rtn", "bits=w8a16", f"backend={backend}", "eval=latency", "eval.prompt=16", "eval.decode=4", "eval.repetitions=1"
    )
    assert ended.code == 0, ended.err
    (timed,) = (record for record in Store(results).records() if record.identity["eval"]["name"] == "latency")
    assert timed.metrics["decode_tokens_per_s"] > 0
