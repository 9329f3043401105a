"""Templates of lm-eval tasks over the user's own file. A template says how the file is read and what each document asks."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.data.text import read
from sqbench.errors import UserError

WORDS = 64  # least words of a passage whose last word is asked for
CHARACTERS = 2000  # least characters of a document of rolling perplexity, about 500 tokens; its last word is whole
SMOKE = Path(__file__).with_name("smoke.jsonl")  # our own minimal pairs

_ACCURACY = {"aggregation": "mean", "higher_is_better": True}
_PERPLEXITY = {"aggregation": "weighted_perplexity", "higher_is_better": False}


@dataclass(frozen=True)
class Template:
    """A kind of task over a file.

    Attributes:
        documents: path -> documents of the file, all with the same fields. Raises UserError.
        config: the other fields of lm-eval's `TaskConfig`.
    """

    documents: Callable[[Path], list[dict[str, Any]]]
    config: dict[str, Any]


def json_lines(path: Path, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents of a JSONL file, one from each line that is not blank.

    Args:
        convert: object of a line -> document. Raises ValueError if the object is not valid.

    Raises:
        UserError: a line is not a JSON object, or `convert` rejects it. The message names file and line.
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
    """The non-blank lines of a text file, numbered from 1. Only a line feed ends a line, as JSON may hold Unicode's other ones."""
    for number, line in enumerate(read(str(path), "eval.tasks").split("\n"), start=1):
        if line.strip():
            yield number, line


def _texts(item: dict[str, Any], *names: str) -> dict[str, str]:
    """The named fields of a document, each of which must be a text."""
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
    """Questions with `choices` and `answer`, the place of the right choice. A `passage` before the question is optional."""
    return json_lines(path, _question)


def last_word(path: Path) -> list[dict[str, Any]]:
    """Consecutive passages of at least `WORDS` words. Each ends with a word that begins with a letter or digit, the target.

    Punctuation after the target is left out, as in LAMBADA. The rest at the end of the text is left out, too.
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
    """A text cut into documents of about `CHARACTERS`. No text is lost, and a bootstrap has several documents to draw from."""
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
            "fewshot_split": "test",  # lm-eval leaves out the document that is asked about
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
