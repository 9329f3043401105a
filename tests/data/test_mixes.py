"""Several files that calibrate: the share of each, the chat template, documents without padding, and the record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import with_template
from cli import Ended
from hypothesis import given
from hypothesis import strategies as st

from sqbench.config import CalibrationConfig
from sqbench.data.base import Batches
from sqbench.data.documents import Documents, documents_of
from sqbench.data.mixes import Mix, asks_for_mix, check_mix, draw_mix, read_mix
from sqbench.errors import UserError
from sqbench.records.store import Store

Run = Callable[..., Ended]
TALK = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}]


class Bytes:
    """A tokenizer of one token a byte, with a chat template."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: torch.Tensor) -> str:
        return bytes(ids.tolist()).decode()

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "".join(f"<{one['role']}>{one['content']}</s>" for one in messages)


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def settings(path: Any, windows: int, **more: Any) -> CalibrationConfig:
    return CalibrationConfig(path=path, windows=windows, **more)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 500))
def test_shares_are_rounded_to_the_right_sum(weights: list[int], windows: int) -> None:
    files = tuple(Documents(str(at), "", ("x",)) for at in range(len(weights)))
    mix = Mix(files, tuple(weight / sum(weights) for weight in weights), pack=True)
    if any(windows * weight < sum(weights) for weight in weights):
        return  # refused, or rounded up to one
    counts = mix.counts(windows)
    assert sum(counts) == windows
    assert all(abs(count - windows * share) < 1 for count, share in zip(counts, mix.shares, strict=True))


def test_every_file_gives_its_share_and_they_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 1000)
    second = jsonl(tmp_path / "b.jsonl", *({"text": "b" * 50} for _ in range(20)))
    calibration = settings([str(tmp_path / "a.txt"), str(second)], 10, weights=[7, 3])
    mix = read_mix(calibration)
    inputs, told = draw_mix(Bytes(), mix, (), 40, calibration)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (10, 40)
    kinds = ["b" if ord("b") in row.tolist() else "a" for row in inputs]
    assert kinds == list("abaaabaaba")
    assert [(one["file"], one["windows"], len(one["at"])) for one in told] == [(str(tmp_path / "a.txt"), 7, 7), (str(second), 3, 3)]
    assert [one["sha256"] for one in told] == [file.fingerprint for file in mix.files]
    again, _ = draw_mix(Bytes(), mix, (), 40, settings(calibration.path, 10, weights=[7, 3], seed=1))
    assert isinstance(again, torch.Tensor)
    assert draw_mix(Bytes(), mix, (), 40, calibration)[0].equal(inputs)  # type: ignore[union-attr]


def test_packed_documents_are_windows_over_their_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "talk.jsonl", {"messages": TALK}, {"messages": TALK})
    whole = "<user>How are you?</s><assistant>Well.</s>" * 2
    calibration = settings(str(path), 4)
    inputs, _ = draw_mix(Bytes(), read_mix(calibration), (1, 2), 20, calibration)
    assert isinstance(inputs, torch.Tensor)
    assert [bytes(row[2:].tolist()).decode() for row in inputs] == [whole[at : at + 20] for at in (0, 20, 40, 60)]
    assert inputs[:, :2].tolist() == [[1, 2]] * 4


def test_a_document_is_a_window_without_padding(tmp_path: Path) -> None:
    texts = ["one", "three", "a long document", "seven", "eight"]
    path = jsonl(tmp_path / "d.jsonl", *({"text": text} for text in texts))
    calibration = settings(str(path), 5, pack=False)
    inputs, told = draw_mix(Bytes(), read_mix(calibration), (9,), 8, calibration)
    assert isinstance(inputs, Batches)
    rows = [batch[0].tolist() for batch in inputs]
    assert sorted(rows) == sorted([9, *text.encode()[:8]] for text in texts)  # their own tokens, cut to the window, and no others
    assert [len(row) for row in rows] == [6, 6, 6, 4, 9]  # the commonest length first
    assert told[0]["at"] == [0, 1, 2, 3, 4]


def test_a_template_that_writes_the_prefix_has_it_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "talk.jsonl", {"messages": TALK})
    calibration = settings(str(path), 1, pack=False)
    inputs, _ = draw_mix(Bytes(), read_mix(calibration), (ord("<"),), 500, calibration)
    (only,) = inputs
    assert bytes(only[0].tolist()).decode() == "<user>How are you?</s><assistant>Well.</s>"


def test_the_fingerprint_is_content_shares_and_packing(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / name, {"text": name[0] * 9}, {"text": "x"}) for name in ("a.jsonl", "b.jsonl")]
    copy = jsonl(tmp_path / "copy.jsonl", {"text": "a" * 9}, {"text": "x"})

    def known(paths: list[Path], windows: int = 10, **more: Any) -> str:
        return read_mix(settings([str(path) for path in paths], windows, **more)).fingerprint(windows)

    base = known(files)
    assert known([copy, files[1]]) == base == known(files, weights=[2, 2])
    others = [known(files[::-1]), known(files[:1]), known(files, weights=[7, 3]), known(files, 12), known(files, pack=False)]
    assert len({base, *others}) == 6


def test_a_plain_text_alone_is_no_mix(tmp_path: Path) -> None:
    assert not asks_for_mix(settings(None, 4))
    assert not asks_for_mix(settings("a.txt", 4))
    assert asks_for_mix(settings("a.jsonl", 4))
    assert asks_for_mix(settings(["a.txt"], 4))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"line 2 is no JSON"),
        ('["a"]', r"line 2 is no document"),
        ('{"text": ""}', r"line 2 is no document"),
        ('{"messages": []}', r"line 2 is no document"),
        ('{"messages": [{"role": "user"}]}', r"line 2 is no document"),
        ('{"messages": [{"role": "user", "content": "a"}], "text": "b"}', r"line 2 is no document"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"has texts and conversations; use a file for each"),
    ],
)
def test_a_line_that_is_no_document_is_named(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "first"}\n' + line)
    with pytest.raises(UserError, match=rf"calibration\.path=.*d\.jsonl: {words}"):
        documents_of(str(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (settings([], 4), r"calibration\.path=\[\]: must be a file, or a list of files"),
        (settings([3], 4), r"calibration\.path=\[3\]: must be a file"),
        (settings(["a", "b", "a"], 4), r"names a twice"),
        (settings(["a", "b"], 4, weights=[1]), r"calibration\.weights=\[1\]: must have a number above 0 for each"),
        (settings(["a", "b"], 4, weights=[1, 0]), r"calibration\.weights=\[1, 0\]: must have a number above 0"),
        (settings(None, 4, weights=[1]), r"calibration\.weights=\[1\]: .*there are 0"),
        (settings(None, 4, pack=False), r"calibration\.pack=false: needs files that end in \.jsonl"),
        (settings(["a.jsonl", "b.txt"], 4, pack=False), r"calibration\.pack=false: needs files"),
    ],
)
def test_what_cannot_work_is_named(calibration: CalibrationConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_mix(calibration)


def test_a_share_that_a_file_does_not_have_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "abcdefgh"}, {"text": "abcdefgh"})
    packed, single = settings(str(path), 5), settings(str(path), 3, pack=False)
    with pytest.raises(UserError, match=r"calibration\.windows=5: the share of .*d\.jsonl is 5, and it has 4 windows of 4 tokens"):
        draw_mix(Bytes(), read_mix(packed), (), 4, packed)
    with pytest.raises(UserError, match=r"calibration\.windows=3: the share of .*d\.jsonl is 3, and it has 2 documents"):
        draw_mix(Bytes(), read_mix(single), (), 4, single)
    two = Mix((Documents("a", "", ("x",)), Documents("b", "", ("x",))), (0.9, 0.1), pack=True)
    with pytest.raises(UserError, match=r"calibration\.windows=4: the share of b is no window"):
        two.counts(4)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "other.txt").write_text("Calibration of another kind. " * 200)
    return tmp_path / "other.txt"


@pytest.fixture
def chatty(tiny_folder: Path, tmp_path: Path) -> Path:
    return with_template(tiny_folder, tmp_path / "chatty")


def test_a_mix_of_text_and_conversations_is_a_point(command: Run, chatty: Path, other: Path, tmp_path: Path, results: Path) -> None:
    talks = jsonl(tmp_path / "talks.jsonl", *({"messages": [{**TALK[0], "content": f"{at}: how?"}, TALK[1]]} for at in range(40)))
    mixed = (f"calibration.path=[{other},{talks}]", "calibration.weights=[3,1]", "calibration.windows=8")
    ended = command(f"model.name={chatty}", "method=rtn", "bits=w8a8_dynamic", *mixed)
    assert ended.code == 0, ended.err
    ended = command(f"model.name={chatty}", "method=gptq", "bits=w4a16_g32", f"calibration.path={talks}", "calibration.pack=false")
    assert ended.code == 0, ended.err
    mixed_record, single = sorted(Store(results).records(), key=lambda record: -record.config["calibration"]["windows"])
    told = mixed_record.provenance["fingerprints"]["calibration_mix"]
    assert [(one["file"], one["windows"]) for one in told] == [(str(other), 6), (str(talks), 2)]
    assert single.provenance["fingerprints"]["calibration_mix"][0]["windows"] == 4
    assert mixed_record.identity["calibration"]["chat"] == single.identity["calibration"]["chat"]


def test_conversations_need_a_template_before_a_weight_is_read(command: Run, tiny_folder: Path, tmp_path: Path) -> None:
    talks = jsonl(tmp_path / "talks.jsonl", {"messages": TALK})
    ended = command("method=rtn", "bits=w8a8", f"calibration.path={talks}")
    assert ended.code == 2
    assert f"calibration.path={talks}: the tokenizer of {tiny_folder} has no chat template" in ended.err


def test_text_that_evaluates_calibrates_in_no_form(command: Run, text_file: Path, tmp_path: Path) -> None:
    text = text_file.read_text(encoding="utf-8")
    whole, part = jsonl(tmp_path / "w.jsonl", {"text": text}), jsonl(tmp_path / "p.jsonl", {"text": text[10:90]})
    for path in (whole, part):
        ended = command("method=rtn", "bits=w8a8", f"calibration.path={path}", "calibration.windows=1")
        assert ended.code != 0
        assert f"calibration.path={path}: holds text that evaluation uses" in ended.err + ended.out
