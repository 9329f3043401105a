"""Files as tasks: what is read, what is refused, and with which words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.errors import UserError
from sqbench.evaluation.templates import CHARACTERS, SMOKE, TEMPLATES, WORDS, last_word, minimal_pairs, multiple_choice, rolling

PAIR = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}
QUESTION = {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_the_bundled_pairs_are_pairs() -> None:
    documents = minimal_pairs(SMOKE)
    assert len(documents) >= 30
    assert len({tuple(pair.values()) for pair in documents}) == len(documents)
    assert all(pair["sentence_good"] != pair["sentence_bad"] for pair in documents)


def test_only_the_fields_of_a_document_are_read_and_blank_lines_are_none(path: Path) -> None:
    path.write_text(f"\n{json.dumps(PAIR | {'UID': 'x'})}\n\n{json.dumps(PAIR)}\n", encoding="utf-8")
    assert minimal_pairs(path) == [PAIR, PAIR]


def test_other_line_separators_of_unicode_stay_inside_a_document(path: Path) -> None:
    path.write_text(json.dumps(PAIR | {"sentence_good": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert minimal_pairs(path)[0]["sentence_good"] == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{'sentence_good': 1}", ["is not JSON", "one object a line"]),
        ("[1]", ["no object"]),
        ('{"good": "Cats."}', ["`sentence_good` is missing (there are good)", "sentence_bad"]),
        (json.dumps(PAIR | {"sentence_bad": " "}), ["`sentence_bad` is ' '", "write a text"]),
    ],
)
def test_a_line_that_is_no_pair_is_named_with_file_and_line(path: Path, line: str, words: list[str]) -> None:
    path.write_text(f"{json.dumps(PAIR)}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        minimal_pairs(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": 2}, "`answer` is 2; write the place of the right choice, from 0 to 1"),
        ({"answer": True}, "`answer` is True"),
        ({"answer": "B"}, "`answer` is 'B'"),
        ({"choices": ["4"]}, "`choices` is ['4']; write a list of two or more texts"),
        ({"choices": ["4", ""]}, "`choices`"),
        ({"choices": "34"}, "`choices`"),
        ({"question": 4}, "`question` is 4"),
    ],
)
def test_a_question_without_its_answer_is_refused(path: Path, change: dict[str, object], words: str) -> None:
    path.write_text(json.dumps(QUESTION), encoding="utf-8")
    assert multiple_choice(path) == [{"passage": "", **QUESTION}]
    path.write_text(json.dumps(QUESTION | change), encoding="utf-8")
    with pytest.raises(UserError) as error:
        multiple_choice(path)
    assert f"{path}:1: {words}" in str(error.value)


texts = st.text(st.sampled_from("ab.,'(- \n\tä中"), min_size=1).map(lambda piece: f"word {piece} " * 70)


@given(texts)
def test_passages_are_cut_from_the_text_and_end_in_a_word(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    text = path.read_text(encoding="utf-8")
    documents = last_word(path)
    assert documents
    for document in documents:
        whole = document["context"] + document["target"]
        assert whole in text
        assert len(whole.split()) >= WORDS
        assert document["target"][0].isspace()
        assert document["target"][-1].isalnum()
        assert not document["context"][-1].isspace()


def test_the_last_word_is_without_what_follows_it(path: Path) -> None:
    path.write_text(" ".join(["so"] * (WORDS - 1)) + ' "do\n don\'t," he said', encoding="utf-8")
    (document,) = last_word(path)
    assert document["target"] == "\n don't"
    assert document["context"].endswith('so "do')


def test_a_text_without_a_passage_is_refused(path: Path) -> None:
    path.write_text("so " * (WORDS - 1), encoding="utf-8")
    with pytest.raises(UserError, match=f"{WORDS - 1} words hold no passage of {WORDS}; use a longer text"):
        last_word(path)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1), min_size=1, max_size=5),
    st.integers(1, 900),
)
def test_rolling_loses_no_character(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], times: int) -> None:
    text = "x" + " ".join(pieces * times)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    documents = [document["text"] for document in rolling(path)]
    assert "".join(documents).strip() == path.read_text(encoding="utf-8").strip()
    assert all(len(document) >= CHARACTERS for document in documents[:-1])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_file_without_anything_is_refused(path: Path, name: str) -> None:
    path.write_text("  \n", encoding="utf-8")
    with pytest.raises(UserError, match="empty"):
        TEMPLATES[name].documents(path)
