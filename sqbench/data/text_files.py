"""Text files, whole or line by line."""

from collections.abc import Iterator
from pathlib import Path

from sqbench.errors import UserError


def read(path: str, key: str) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: the file is missing, empty or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except IsADirectoryError as error:
        raise UserError(f"{key}={path}: is a folder; use a UTF-8 text file") from error
    except FileNotFoundError as error:
        raise UserError(f"{key}={path}: no such file (from {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: cannot be read as UTF-8 text ({error})") from error
    if not text.strip():
        raise UserError(f"{key}={path}: the file is empty; use a UTF-8 text of some thousand words")
    return text


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a text, numbered from 1. Only a line feed ends a line, as JSON may hold Unicode's other ones."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
