"""Benchmark files as their authors publish them. Each is asked as lm-eval's own task asks it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import Ended

from sqbench.errors import UserError
from sqbench.evaluation.published import PUBLISHED
from sqbench.evaluation.questions import Own, multiple_choice
from sqbench.evaluation.tasks import asked, manager
from sqbench.records.store import Store

# Two documents a benchmark in the published layout, written for this test.
FILES: dict[str, list[dict[str, Any]]] = {
    "piqa": [
        {"goal": "Dry a wet shirt.", "sol1": "Hang it on a line.", "sol2": "Put it into water."},
        {"goal": "Cut bread.", "sol1": "Use a spoon.", "sol2": "Use a knife."},
    ],
    "arc": [
        {
            "id": "a",
            "question": {"stem": "Ice is", "choices": [{"text": "hot", "label": "A"}, {"text": "cold", "label": "B"}]},
            "answerKey": "B",
        },
        {
            "id": "b",
            "question": {"stem": "A cat is", "choices": [{"text": "an animal", "label": "1"}, {"text": "a stone", "label": "2"}]},
            "answerKey": "1",
        },
    ],
    "hellaswag": [
        {
            "ind": 1,
            "activity_label": "Cooking",
            "ctx_a": "A man boils water.",
            "ctx_b": "he",
            "endings": ["adds pasta. [step] He waits", "flies away."],
            "label": 0,
        },
        {"ind": 2, "activity_label": "Sports", "ctx_a": "A girl runs.", "ctx_b": "", "endings": ["sinks.", "wins."], "label": "1"},
    ],
    "winogrande": [
        {
            "qID": "1",
            "sentence": "The cup fell off the table because _ was tilted.",
            "option1": "the cup",
            "option2": "the table",
            "answer": "2",
        },
        {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ],
    "boolq": [
        {"question": "is ice cold", "title": "Ice", "answer": True, "passage": "Ice is frozen water."},
        {"question": "is fire cold", "title": "Fire", "answer": False, "passage": "Fire is hot."},
    ],
    "lambada": [{"text": "The dog ran after the cat and the cat climbed a tree"}, {"text": "He opened the door with his key"}],
}
ASKED = {  # what lm-eval puts before an answer, and the answer
    "piqa": ("Question: Dry a wet shirt.\nAnswer:", 0),
    "arc": ("Question: Ice is\nAnswer:", 1),
    "hellaswag": ("Cooking: A man boils water. He", 0),
    "boolq": ("Ice is frozen water.\nQuestion: is ice cold?\nAnswer:", 1),
    "lambada": ("The dog ran after the cat and the cat climbed a", " tree"),
}


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in FILES[name]), encoding="utf-8")
    if name == "piqa":
        (folder / "piqa-labels.lst").write_text("0\n1\n")
    return path


def task_of(path: Path, name: str) -> Any:
    (one,) = asked([f"{name}:{path}"])
    loaded = manager(False).load([one.specify(None)])["tasks"]
    return next(iter(loaded.values()))


@pytest.mark.parametrize("name", ASKED)
def test_a_file_is_asked_as_lm_eval_asks(tmp_path: Path, name: str) -> None:
    task = task_of(written(tmp_path, name), name)
    first = next(iter(task.eval_docs))
    assert (task.doc_to_text(first), task.doc_to_target(first)) == ASKED[name]


def test_winogrande_puts_each_option_into_the_gap(tmp_path: Path) -> None:
    task = task_of(written(tmp_path, "winogrande"), "winogrande")
    first = next(iter(task.eval_docs))
    assert task.doc_to_choice(first) == [
        "The cup fell off the table because the cup",
        "The cup fell off the table because the table",
    ]
    assert (task.doc_to_text(first), task.doc_to_target(first)) == (1, "was tilted.")


def test_every_published_file_is_a_point(command: Callable[..., Ended], tmp_path: Path, results: Path) -> None:
    entries = ",".join(f"{name}:{written(tmp_path, name)}" for name in PUBLISHED)
    ended = command("method=rtn", "bits=w8a16", "eval=lm_eval", f"eval.tasks=[{entries}]")
    assert ended.code == 0, ended.err
    (record,) = Store(results).records()
    assert {f"{name}/acc" for name in PUBLISHED} <= set(record.metrics)


def test_a_file_with_its_own_fields_is_a_point(command: Callable[..., Ended], mine: Path, tmp_path: Path, results: Path) -> None:
    (tmp_path / "answers.txt").write_text("1\n")
    fields = "eval.fields={question: goal, choices: [sol1, sol2]}"
    entry = f"eval.tasks=[multiple_choice:{mine}]"
    ended = command("method=rtn", "bits=w8a16", "eval=lm_eval", entry, fields, f"eval.answers={tmp_path / 'answers.txt'}")
    assert ended.code == 0, ended.err
    (record,) = Store(results).records()
    assert "mine/acc" in record.metrics
    assert "answers" not in record.identity["eval"]  # its content is in the task


def test_the_identity_of_piqa_has_its_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "piqa")
    (before,) = asked([f"piqa:{path}"])
    (tmp_path / "piqa-labels.lst").write_text("1\n1\n")
    (after,) = asked([f"piqa:{path}"])
    assert before.inputs != after.inputs


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("arc", {"answerKey": "E"}, r"arc\.jsonl:1: `answerKey` is 'E', and the labels are A, B"),
        ("hellaswag", {"endings": "x"}, r"`endings` is 'x'; the file must be as its authors publish it"),
        ("winogrande", {"sentence": "no gap"}, r"must have a gap _"),
        ("boolq", {"answer": 1}, r"`answer` is 1; the file must be as its authors publish it"),
        ("lambada", {"text": None}, r"`text` is None"),
        ("piqa", {"sol2": None}, r"`sol2` is None"),
    ],
)
def test_another_layout_is_named_with_file_and_line(tmp_path: Path, name: str, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path, name)
    first, *others = FILES[name]
    path.write_text("".join(json.dumps(item) + "\n" for item in ({**first, **change}, *others)), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        PUBLISHED[name].documents(path)


def test_labels_of_piqa_that_are_missing_or_too_few_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "piqa")
    (tmp_path / "piqa-labels.lst").write_text("0\n")
    with pytest.raises(UserError, match=r"a line with 0 or 1 for each of the 2 questions of piqa\.jsonl, and has 1 lines"):
        PUBLISHED["piqa"].documents(path)
    (tmp_path / "piqa-labels.lst").unlink()
    with pytest.raises(UserError, match=r"piqa-labels\.lst: no such file"):
        asked([f"piqa:{path}"])


QUESTION = {"goal": "2 + 2 =", "sol1": "3", "sol2": "4", "label": 1}
FIELDS = {"question": "goal", "choices": ["sol1", "sol2"], "answer": "label"}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    return path


def test_a_file_may_name_its_fields_as_it_likes(mine: Path) -> None:
    assert multiple_choice(mine, Own(FIELDS)) == [{"passage": "", "question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}]


@pytest.mark.parametrize(("line", "answer"), [("0", 0), ("4", 1)])
def test_answers_may_be_in_a_second_file_by_place_or_by_text(mine: Path, tmp_path: Path, line: str, answer: int) -> None:
    (tmp_path / "answers.txt").write_text(f"{line}\n")
    fields = {name: given for name, given in FIELDS.items() if name != "answer"}
    assert multiple_choice(mine, Own(fields, str(tmp_path / "answers.txt")))[0]["answer"] == answer


def test_a_dot_leads_into_an_object(tmp_path: Path) -> None:
    path = tmp_path / "nested.jsonl"
    path.write_text(json.dumps({"q": {"stem": "Ice is"}, "choices": ["hot", "cold"], "answer": "cold"}))
    assert multiple_choice(path, Own({"question": "q.stem"}))[0]["question"] == "Ice is"
    with pytest.raises(UserError, match=r"nested\.jsonl:1: `q\.text` is missing \(there are stem\)"):
        multiple_choice(path, Own({"question": "q.text"}))


def test_fields_and_answers_are_part_of_the_identity(mine: Path) -> None:
    (plain,) = asked([f"multiple_choice:{mine}"], Own(FIELDS))
    (other,) = asked([f"multiple_choice:{mine}"], Own({**FIELDS, "choices": ["sol2", "sol1"]}))
    assert plain.inputs != other.inputs


@pytest.mark.parametrize(
    ("entries", "own", "words"),
    [
        (["smoke"], Own(FIELDS), r"eval\.tasks=\[smoke\]: eval\.fields and eval\.answers are for multiple_choice:FILE"),
        (["multiple_choice:{mine}"], Own({"prompt": "goal"}), r"eval\.fields: prompt: "),
        (["multiple_choice:{mine}"], Own({"question": 3}), r"eval\.fields: question: 3: must be the name of a field"),
        (["multiple_choice:{mine}"], Own(FIELDS, "nowhere.txt"), r"eval\.answers=nowhere\.txt: no such file"),
    ],
)
def test_fields_and_answers_that_cannot_work_are_refused(mine: Path, entries: list[str], own: Own, words: str) -> None:
    with pytest.raises(UserError, match=words):
        asked([entry.format(mine=mine) for entry in entries], own)


def test_answers_that_are_too_few_are_named(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("0\n1\n")
    with pytest.raises(UserError, match=r"has 2 lines, and .*mine\.jsonl has 1 questions"):
        multiple_choice(mine, Own(FIELDS, str(tmp_path / "answers.txt")))


def test_an_answer_that_is_a_text_and_a_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(json.dumps({"question": "1 + 0 =", "choices": ["1", "2"], "answer": "1"}))
    with pytest.raises(UserError, match=r"`answer` is '1', which is the text of one choice and the place of another"):
        multiple_choice(path, Own({}))
