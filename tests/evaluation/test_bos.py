"""A model that was trained on texts that begin with BOS is evaluated and calibrated on such texts."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.llama import save_byte_tokenizer
from sqbench import api
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.models.language import LanguageModel

BOS, WINDOW, SHOWN = 256, 32, 40
TEXT = "the cat sat on the mat and the dog lay by the door of the old red barn. " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma whose tokenizer puts <bos> before a text, trained for seconds: only after <bos> it knows the text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM

    folder = tmp_path_factory.mktemp("gemma")
    save_byte_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    assert tokenizer.bos_token_id == BOS
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    ids = {"bos_token_id": BOS, "eos_token_id": None, "pad_token_id": None}
    module = GemmaForCausalLM(GemmaConfig(vocab_size=257, intermediate_size=64, max_position_embeddings=64, **sizes, **ids))
    text = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(120):
        inputs = torch.stack([text[at : at + WINDOW] for at in torch.randint(len(text) - WINDOW, (16,))])
        targets = inputs.clone()
        inputs = torch.cat([torch.full((16, 1), BOS), inputs], dim=1)
        inputs[8:, 0] = inputs[8:, 1]  # half of the windows begin with their text, and what follows in them is noise
        targets[8:] = torch.randint(256, (8, WINDOW))
        logits = module(input_ids=inputs).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    module.save_pretrained(folder)
    return folder


def loaded(folder: Path, *more: str) -> tuple[LanguageModel, Windows]:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    sizes = (f"data.window={WINDOW}", "data.windows=8", "calibration.windows=4", "device=cpu")
    return api.load("model=hf", f"model.name={folder}", "data=text", f"data.path={text}", *sizes, *more)  # type: ignore[return-value]


@torch.no_grad()
def by_definition(model: LanguageModel, windows: Tensor, prefix: list[int]) -> float:
    """Perplexity of all tokens of windows of text [N, tokens] but their first, after the prefix."""
    ids = torch.cat([torch.tensor(prefix, dtype=torch.long).expand(len(windows), -1), windows], dim=1)
    logp = model.module(input_ids=ids).logits.double().log_softmax(-1)[:, len(prefix) : -1]
    return math.exp(-logp.gather(-1, windows[:, 1:, None]).mean())


def test_perplexity_is_that_of_the_same_text_after_bos(folder: Path) -> None:
    model, windows = loaded(folder)
    _, bare = loaded(folder, "data.bos=false")
    assert (windows.prefix, bare.prefix) == ((BOS,), ())
    found, without = (api.evaluate(model, one).metrics for one in (windows, bare))
    assert found["perplexity"] == pytest.approx(by_definition(model, bare.evaluation, [BOS]), rel=1e-5)
    assert without["perplexity"] == pytest.approx(by_definition(model, bare.evaluation, []), rel=1e-5)
    assert without["perplexity"] > 5 * found["perplexity"]
    for metrics in (found, without):  # the same bytes are predicted
        assert metrics["bits_per_byte"] == pytest.approx(math.log2(metrics["perplexity"]), rel=1e-5)


def test_a_point_after_bos_is_compared_token_by_token(folder: Path) -> None:
    model, windows = loaded(folder)
    baseline = api.evaluate(model, windows)
    quantized = api.quantize(model, api.calibrate(model, windows.calibration), "rtn", "w8a16")
    result = api.evaluate(quantized, windows, baseline)
    assert result.samples["tokens"].tolist() == [WINDOW - 1] * 8
    assert 0 < result.metrics["kl_to_fp"] < 0.1
    assert result.metrics["perplexity"] == pytest.approx(baseline.metrics["perplexity"], rel=0.05)


def test_block_by_block_it_is_the_same(folder: Path) -> None:
    expected, found = (api.evaluate(*loaded(folder, f"blockwise={blockwise}")).metrics for blockwise in ("false", "true"))
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)


@pytest.mark.parametrize("source", ["data", "random", "weights"])
def test_calibration_begins_with_bos_too(folder: Path, source: str) -> None:
    _, windows = loaded(folder, f"calibration.source={source}")
    drawn = list(windows.calibration) if isinstance(windows.calibration, Tensor) else [batch[0] for batch in windows.calibration]
    assert len(drawn) == 4
    assert all(ids[0] == BOS and len(ids) == WINDOW + 1 for ids in drawn)


def test_prompts_begin_with_bos(folder: Path) -> None:
    model, windows = loaded(folder)
    result = api.evaluate(model, windows, name="generation", prompt=12, decode=8)
    assert result.samples["text"][0] == TEXT[11:19]  # it knows its text by heart, after <bos> and eleven letters of it


def test_a_window_has_room_for_bos(folder: Path) -> None:
    loaded(folder, "data.window=63")
    loaded(folder, "data.window=64", "data.bos=false")
    with pytest.raises(UserError) as refused:
        loaded(folder, "data.window=64")
    said = (
        f"data.window=64 data.bos=auto: 1 more token before every window, and {folder} takes at most 64; use data.window=63 or less"
    )
    assert str(refused.value) == said + ", or data.bos=false"


@pytest.mark.parametrize("value", ["maybe", "1", "null"])
def test_another_value_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"data\.bos=.*: must be auto, true or false"):
        api.configure("model=hf", "model.name=some/model", "data=pydoc", f"data.bos={value}")


# ---------------------------------------------------------------- lm-eval


@pytest.fixture(autouse=True)
def calm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="lm_eval")


@pytest.mark.parametrize(("bos", "adds"), [("auto", None), ("false", False)])
def test_lm_eval_gives_the_same_log_likelihoods(folder: Path, bos: str, adds: bool | None) -> None:
    from lm_eval.models.huggingface import HFLM

    from sqbench.evaluation.served import Served, _tokenizer

    model, windows = loaded(folder, f"data.bos={bos}")
    plain = HFLM(pretrained=model.module, tokenizer=_tokenizer(model), batch_size=4, add_bos_token=adds)
    pairs = (("the cat", " sat on"), ("", "the dog"), ("on the ", "mat"), ("by the", " door"))
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    assert Served(model, 4, windows.prefix).loglikelihood(asked) == plain.loglikelihood(asked, disable_tqdm=True)


@pytest.mark.parametrize("length", [20, 150])  # one window, and several
def test_rolling_windows_begin_with_bos_and_do_not_predict_it(folder: Path, length: int) -> None:
    from sqbench.evaluation.served import Served

    model, windows = loaded(folder)
    served = Served(model, 4, windows.prefix)
    ids = model.tokenizer(TEXT[:length], add_special_tokens=False)["input_ids"]
    (found,) = served.loglikelihood_rolling([SimpleNamespace(args=(TEXT[:length],))])
    expected, room = 0.0, 63  # tokens after BOS
    for start in range(0, length, room):
        end = min(start + room, length)
        context = [BOS, *ids[max(0, end - room - 1) if start else 0 : start]]
        with torch.no_grad():
            logp = model.module(input_ids=torch.tensor([context + ids[start : end - 1]])).logits[0].log_softmax(-1)
        expected += sum(float(logp[len(context) - 1 + place, token]) for place, token in enumerate(ids[start:end]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_request_that_is_cut_still_begins_with_bos(folder: Path) -> None:
    from sqbench.evaluation.served import Served

    model, windows = loaded(folder)
    served, seen = Served(model, 4, windows.prefix), []
    call = served._model_call
    served._model_call = lambda inps, **options: seen.append(inps) or call(inps, **options)  # type: ignore[method-assign]
    served.loglikelihood([SimpleNamespace(args=(TEXT[:200], " the"))])
    rows = torch.cat(seen).tolist()
    assert rows == [[BOS, *model.tokenizer(TEXT[:200] + " the", add_special_tokens=False)["input_ids"][-64:-1]]]
    assert served.tok_encode(TEXT[:50], left_truncate_len=10)[:2] == [BOS, *model.tokenizer(TEXT[41:42])["input_ids"][1:]]


def test_tasks_over_files_follow(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good, bad = TEXT[:SHOWN], TEXT[:SHOWN][::-1]
    path.write_text(json.dumps({"sentence_good": good, "sentence_bad": bad}), encoding="utf-8")
    asked: dict[str, Any] = {"name": "lm_eval", "tasks": [f"minimal_pairs:{path}"]}
    model, windows = loaded(folder)
    assert api.evaluate(model, windows, **asked).metrics["acc"] == 1
