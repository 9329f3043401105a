"""Chat templates: the words around what is asked, the identity, and the models and tasks that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import TEMPLATE, with_template
from cli import Ended
from transformers import AutoTokenizer

from sqbench.data import Windows
from sqbench.data.chat import around, fingerprint, template_of
from sqbench.errors import UserError
from sqbench.evaluation.generation import asked_in_chat
from sqbench.evaluation.served import Served
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

Run = Callable[..., Ended]


@pytest.fixture
def chatty(tiny_folder: Path, tmp_path: Path) -> Path:
    return with_template(tiny_folder, tmp_path / "chatty")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "arc.jsonl"
    choices = [{"text": "hot", "label": "A"}, {"text": "cold", "label": "B"}]
    lines = [{"id": stem, "question": {"stem": stem, "choices": choices}, "answerKey": "B"} for stem in ("Ice is", "Snow is")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_template_is_found_and_wraps_a_message(tiny_folder: Path, chatty: Path) -> None:
    bare, chat = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_folder, chatty))
    assert (template_of(bare), template_of(chat)) == (None, TEMPLATE)
    assert around(chat, "eval.chat=true") == ("<user>", "</s><assistant>")
    with pytest.raises(UserError, match=r"eval\.chat=true: the tokenizer of tiny has no chat template"):
        fingerprint(bare, "eval.chat=true", "tiny")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only systems') }}", r"does not take it \(only systems\)"),
        ("{{ messages[0].content }}{{ messages[0].content }}", r"writes a user's message 2 times; it must be once"),
        ("hello", r"writes a user's message 0 times"),
    ],
)
def test_a_template_that_does_not_wrap_is_named(tiny_folder: Path, tmp_path: Path, template: str, words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(with_template(tiny_folder, tmp_path / "other", template))
    with pytest.raises(UserError, match=rf"eval\.chat=true: .*{words}"):
        around(tokenizer, "eval.chat=true")


def test_a_prompt_keeps_its_tokens_between_those_of_the_template(tiny: LanguageModel, chatty: Path, windows: Windows) -> None:
    model = LanguageModel(tiny.module, "chatty", "x", tokenizer=AutoTokenizer.from_pretrained(chatty))
    start, end = (torch.tensor(model.tokenizer(text)["input_ids"]) for text in ("<user>", "</s><assistant>"))
    prompts = windows.evaluation[:3, :10]
    for prefix in ((), (5, 6)):
        begun = torch.cat([torch.tensor(prefix, dtype=torch.long).expand(3, -1), prompts], dim=1)
        found = asked_in_chat(model, begun, prefix)
        expected = [torch.cat([torch.tensor(prefix, dtype=torch.long), start, row, end]) for row in prompts]
        assert torch.equal(found, torch.stack(expected))
    first = int(start[0])  # a template that begins with the prefix itself
    begun = torch.cat([torch.full((3, 1), first), prompts], dim=1)
    assert torch.equal(asked_in_chat(model, begun, (first,)), torch.stack([torch.cat([start, row, end]) for row in prompts]))


def test_lm_eval_asks_in_the_words_of_the_template(
    command: Run, chatty: Path, questions: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = Served.loglikelihood

    def listen(self: Served, requests: Any, disable_tqdm: bool = False) -> Any:
        asked.extend(request.args[0] for request in requests)
        return plain(self, requests, disable_tqdm)

    monkeypatch.setattr(Served, "loglikelihood", listen)
    judged = (f"model.name={chatty}", "method=rtn", "bits=w8a16", "eval=lm_eval", f"eval.tasks=[arc:{questions}]")
    for chat in ("false", "true"):
        ended = command(*judged, f"eval.chat={chat}", "eval.fewshot=1")
        assert ended.code == 0, ended.err
    plain_words, wrapped = (
        "Question: Snow is\nAnswer: cold\n\nQuestion: Ice is\nAnswer:",
        ("<user>Question: Snow is\nAnswer:</s><assistant>cold</s><user>Question: Ice is\nAnswer:</s><assistant>"),
    )
    assert {plain_words, wrapped} <= set(asked)
    off, on = sorted(Store(results).records(), key=lambda record: "chat" in record.identity["eval"])
    assert "chat" not in off.identity["eval"]
    assert on.identity["eval"]["chat"] == fingerprint(AutoTokenizer.from_pretrained(chatty), "eval.chat=true", "chatty")
    assert off.metrics.keys() == on.metrics.keys()


def test_generation_answers_in_a_chat(command: Run, chatty: Path, results: Path) -> None:
    judged = (f"model.name={chatty}", "method=rtn", "bits=w3a16", "eval=generation", "eval.prompt=16", "eval.decode=8")
    for chat in ("false", "true"):
        assert command(*judged, f"eval.chat={chat}").code == 0
    texts = [tuple(Store(results).samples(record.point_id)["text_fp"]) for record in Store(results).records()]
    assert len(set(texts)) == 2
    ended = command(*judged, "eval.prompt=64", "eval.decode=60", "eval.chat=true")  # fits without the template's 21 bytes
    assert ended.code == 1
    assert "takes at most 128 tokens" in ended.err + ended.out


def test_another_template_is_another_point(command: Run, chatty: Path, results: Path) -> None:
    judged = (
        f"model.name={chatty}",
        "method=rtn",
        "bits=w8a16",
        "eval=generation",
        "eval.prompt=8",
        "eval.decode=4",
        "eval.chat=true",
    )
    assert command(*judged).code == 0
    (chatty / "chat_template.jinja").write_text(TEMPLATE.replace("</s>", "</e>"), encoding="utf-8")
    assert command(*judged).code == 0
    first, second = Store(results).records()
    assert first.identity["eval"]["chat"] != second.identity["eval"]["chat"]


def test_a_model_without_a_template_is_refused_before_a_weight_is_read(
    command: Run, tiny_folder: Path, results: Path, questions: Path
) -> None:
    for judged in (("eval=generation", "eval.prompt=8"), ("eval=lm_eval", f"eval.tasks=[arc:{questions}]")):
        ended = command("method=rtn", "bits=w8a16", *judged, "eval.chat=true")
        assert ended.code == 2
        assert f"eval.chat=true: the tokenizer of {tiny_folder} has no chat template; use a model with one" in ended.err
    assert not list(Store(results).records())


def test_a_task_that_asks_nothing_is_refused(command: Run, chatty: Path, text_file: Path) -> None:
    ended = command(f"model.name={chatty}", "method=rtn", "eval=lm_eval", f"eval.tasks=[rolling:{text_file}]", "eval.chat=true")
    assert ended.code == 2
    assert "eval.chat=true: text is the likelihood of a whole text, and asks nothing" in ended.err
