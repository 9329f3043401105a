"""Files of questions with choices, under the template's names of fields or the file's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.errors import UserError, known
from sqbench.evaluation.lines import json_lines, lines_of, texts
from sqbench.storage.files import known_digest

FIELDS = ("question", "choices", "answer", "passage")


@dataclass(frozen=True)
class Own:
    """How a file of questions differs from the template `multiple_choice`.

    Attributes:
        fields: `question`, `choices`, `answer` or `passage` -> the file's name of it. `choices` may be a list of names. A dot leads
            into an object: `question.stem`.
        answers: a file with the answer of each question in a line of its own.
    """

    fields: Mapping[str, Any]
    answers: str | None = None

    def check(self) -> None:
        """Raise UserError for a field that the template does not have, or a name that is no text."""
        for name, given in self.fields.items():
            if name not in FIELDS:
                raise UserError(f"eval.fields: {name}: {known(name, FIELDS)}")
            names = given if isinstance(given, list) and name == "choices" else [given]
            if not all(isinstance(one, str) and one for one in names):
                raise UserError(f"eval.fields: {name}: {given}: must be the name of a field of the file")
        if self.answers is not None and not Path(self.answers).is_file():
            raise UserError(f"eval.answers={self.answers}: no such file (from {Path.cwd()})")

    def renamed(self, item: dict[str, Any]) -> dict[str, Any]:
        """A document under the template's names."""
        found = dict(item)
        for name, given in self.fields.items():
            found[name] = [_inside(item, one) for one in given] if isinstance(given, list) else _inside(item, given)
        return found

    def about(self) -> dict[str, Any]:
        """What a number depends on: the names, and the content of the answers."""
        answers = {} if self.answers is None else {"answers": known_digest(Path(self.answers))}
        return {"fields": dict(self.fields), **answers}


def multiple_choice(path: Path, own: Own | None = None) -> list[dict[str, Any]]:
    """Questions with `choices` and `answer`, the place of the right choice. A `passage` before the question is optional.

    Args:
        own: the file's own names of these fields, and a file with the answers.
    """
    if own is None:
        return json_lines(path, _question)
    renamed = json_lines(path, own.renamed)
    if own.answers is not None:
        answers = [line.strip() for _, line in lines_of(Path(own.answers))]
        if len(answers) != len(renamed):
            raise UserError(f"eval.answers={own.answers}: has {len(answers)} lines, and {path} has {len(renamed)} questions")
        renamed = [{**item, "answer": answer} for item, answer in zip(renamed, answers, strict=True)]
    return [_checked(item, path, number) for number, item in enumerate(renamed, start=1)]


def _checked(item: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """A question whose answer may also be a number in words or the text of a choice."""
    try:
        return _question({**item, "answer": _place(item.get("answer"), item.get("choices"))})
    except ValueError as problem:
        raise UserError(f"{path}: question {number}: {problem}") from problem


def _place(answer: Any, choices: Any) -> Any:
    """The place of an answer that is the text of a choice, or a place in words. Raises ValueError if it is both."""
    if not isinstance(answer, str) or not isinstance(choices, list):
        return answer
    places = {choices.index(answer)} if answer in choices else set()
    if answer.isdecimal() and int(answer) < len(choices):
        places.add(int(answer))
    if len(places) > 1:
        raise ValueError(f"`answer` is {answer!r}, which is the text of one choice and the place of another; write numbers")
    return places.pop() if places else answer


def _inside(item: Any, name: str) -> Any:
    """The value of a field, or of a field inside objects. Raises ValueError if there is none."""
    for part in name.split("."):
        if not isinstance(item, dict) or part not in item:
            raise ValueError(f"`{name}` is missing (there are {', '.join(item) if isinstance(item, dict) else 'none'})")
        item = item[part]
    return item


def _question(item: dict[str, Any]) -> dict[str, Any]:
    question, choices, answer = texts(item, "question"), item.get("choices"), item.get("answer")
    passage = {"passage": ""} if item.get("passage") in (None, "") else texts(item, "passage")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(text, str) and text for text in choices):
        raise ValueError(f"`choices` is {choices!r}; write a list of two or more texts")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"`answer` is {answer!r}; write the place of the right choice, from 0 to {len(choices) - 1}")
    return {**passage, **question, "choices": choices, "answer": answer}
