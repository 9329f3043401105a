"""Tasks of lm-eval over a file of one's own: how a file is read, and what is asked about each of its documents."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.data.text import read
from sqbench.errors import UserError

WORDS = 64  # of a passage whose last word is asked for, or a few more
CHARACTERS = 2000  # of a document of rolling perplexity, and on to the end of its last word: about 500 tokens
SMOKE = Path(__file__).with_name("smoke.jsonl")  # minimal pairs of our own

_ACCURACY = {"aggregation": "mean", "higher_is_better": True}
_PERPLEXITY = {"aggregation": "weighted_perplexity", "higher_is_better": False}


@dataclass(frozen=True)
class Template:
    """A kind of task over a file.

    Attributes:
        documents: the documents of a file, all with the same fields. Raises UserError.
        config: the rest of the task in lm-eval's words (its `TaskConfig`).
    """

    documents: Callable[[Path], list[dict[str, Any]]]
    config: dict[str, Any]


def json_lines(path: Path, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """A document from every line of a JSONL file that is not blank.

    Args:
        convert: a line's object to a document; ValueError says what is wrong with it.

    Raises:
        UserError: a line is no JSON object or no such document; names file and line.
    """
    documents = []
    for number, line in lines_of(path):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: is not JSON ({error}); write one object a line") from error
        if not isinstance(item, dict):
            raise UserError(f"{path}:{number}: is JSON, but no object; write one object a line")
        try:
            documents.append(convert(item))
        except ValueError as problem:
            raise UserError(f"{path}:{number}: {problem}") from problem
    return documents


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, numbered from 1. Only a line feed ends one: JSON may hold Unicode's others."""
    for number, line in enumerate(read(str(path), "eval.tasks").split("\n"), start=1):
        if line.strip():
            yield number, line


def _texts(item: dict[str, Any], *names: str) -> dict[str, str]:
    """The fields of a document that are texts."""
    for name in names:
        if not isinstance(item.get(name), str) or not item[name].strip():
            found = f"is {item[name]!r}" if name in item else f"is missing (there are {', '.join(item) or 'none'})"
            raise ValueError(f"`{name}` {found}; write a text, in each of {', '.join(names)}")
    return {name: item[name] for name in names}


def _pair(item: dict[str, Any]) -> dict[str, Any]:
    return _texts(item, "sentence_good", "sentence_bad")


def _question(item: dict[str, Any]) -> dict[str, Any]:
    question, choices, answer = _texts(item, "question"), item.get("choices"), item.get("answer")
    passage = {"passage": ""} if item.get("passage") in (None, "") else _texts(item, "passage")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(text, str) and text for text in choices):
        raise ValueError(f"`choices` is {choices!r}; write a list of two or more texts")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"`answer` is {answer!r}; write the place of the right choice, from 0 to {len(choices) - 1}")
    return {**passage, **question, "choices": choices, "answer": answer}


def minimal_pairs(path: Path) -> list[dict[str, Any]]:
    """Pairs of sentences in the format of BLiMP (Warstadt et al. 2020)."""
    return json_lines(path, _pair)


def multiple_choice(path: Path) -> list[dict[str, Any]]:
    """Questions with `choices` and the place of the right one, `answer`; with a `passage` before it where several share one."""
    return json_lines(path, _question)


def last_word(path: Path) -> list[dict[str, Any]]:
    """Passages one after the other, each of `WORDS` words and on to the next that begins with a letter or digit.

    What follows that word's letters is left out, as in LAMBADA, and so is what remains at the end of the text.
    """
    text = read(str(path), "eval.tasks")
    words = list(re.finditer(r"\S+", text))
    documents, start = [], 0
    for place, last in enumerate(words):
        word = re.match(r"\w+(?:['’-]\w+)*", last[0])
        if word and place - start >= WORDS - 1:
            before = words[place - 1].end()
            documents.append({"context": text[words[start].start() : before], "target": text[before : last.start()] + word[0]})
            start = place + 1
    if not documents:
        raise UserError(f"eval.tasks=[last_word:{path}]: {len(words)} words hold no passage of {WORDS}; use a longer text")
    return documents


def rolling(path: Path) -> list[dict[str, Any]]:
    """A text in documents of about `CHARACTERS`: none is lost, and a bootstrap has something to draw."""
    pieces = re.findall(rf".{{{CHARACTERS}}}\S*\s*|.+", read(str(path), "eval.tasks"), re.DOTALL)
    return [{"text": piece} for piece in pieces if piece.strip()]


TEMPLATES = {
    "minimal_pairs": Template(
        minimal_pairs,  # the rest is lm-eval's own `blimp`
        {
            "output_type": "multiple_choice",
            "doc_to_text": "",
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "doc_to_target": 0,
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", **_ACCURACY}],
        },
    ),
    "multiple_choice": Template(
        multiple_choice,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{passage ~ '\n' if passage else ''}}{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "fewshot_split": "test",  # which leaves out the document that is asked about
            "metric_list": [{"metric": "acc", **_ACCURACY}, {"metric": "acc_norm", **_ACCURACY}],
        },
    ),
    "last_word": Template(
        last_word,  # the rest is lm-eval's own `lambada_openai`
        {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "target",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **_ACCURACY},
            ],
        },
    ),
    "rolling": Template(
        rolling,  # the rest is lm-eval's own `wikitext`
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": "word_perplexity", **_PERPLEXITY},
                {"metric": "byte_perplexity", **_PERPLEXITY},
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
        },
    ),
}
