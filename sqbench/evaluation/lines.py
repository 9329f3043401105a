"""Files of documents, one a line. What is wrong is named with file and line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqbench.data import text_files
from sqbench.errors import UserError


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
    """The non-blank lines of a text file, numbered from 1."""
    return text_files.lines_of(text_files.read(str(path), "eval.tasks"))


def texts(item: dict[str, Any], *names: str) -> dict[str, str]:
    """The named fields of a document, each of which must be a text."""
    for name in names:
        if not isinstance(item.get(name), str) or not item[name].strip():
            found = f"is {item[name]!r}" if name in item else f"is missing (there are {', '.join(item) or 'none'})"
            raise ValueError(f"`{name}` {found}; write a text, in each of {', '.join(names)}")
    return {name: item[name] for name in names}
