"""Tables of texts with a label or a score: CSV, TSV, JSONL and parquet, a row an example."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqbench.data.text_files import lines_of
from sqbench.errors import UserError, known

KEY = "data.columns"
COLUMNS = {"text": "text", "label": "label"}  # what data.columns=null stands for
ROLES = ("text", "second", "label", "score")
Target = str | int | float | None
Read = Callable[[Path, Sequence[Any]], Iterator[list[Any]]]  # (file, columns) -> the cells of these columns, row by row


@dataclass(frozen=True)
class Row:
    """An example: one text or two, and what is known of it.

    Attributes:
        target: a class as a number or a word, or a score. None if nothing is known.
    """

    texts: tuple[str, ...]
    target: Target = None


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        texts: columns of one text, or of two.
        target: the column of the label or of the score. None if there is none.
        scored: whether that is a score, a number on a scale. Otherwise it is the name of a class.
    """

    texts: tuple[str | int, ...]
    target: str | int | None
    scored: bool

    @classmethod
    def of(cls, told: Any) -> "Columns":
        """The columns that `data.columns` names.

        Raises:
            UserError: a role is unknown or is missing, two roles exclude each other, or a column is no name and no number.
        """
        told = COLUMNS if told is None else told
        if not isinstance(told, Mapping):
            raise UserError(f"{KEY}={told}: must be a mapping, for example {{text: sentence, label: label}}")
        for role, column in told.items():
            if role not in ROLES:
                raise UserError(f"{KEY}.{role}: {known(role, ROLES)}")
            if isinstance(column, bool) or not isinstance(column, str | int):
                raise UserError(
                    f"{KEY}.{role}={column}: must be the name of a column, or its number from 0 in a file without names"
                )
        if "text" not in told:
            raise UserError(f"{KEY}: must name the column of the text, for example {KEY}={{text: sentence, label: label}}")
        if "label" in told and "score" in told:
            raise UserError(f"{KEY}: must have a label (the name of a class) or a score (a number), not both")
        if len({isinstance(column, int) for column in told.values()}) > 1:
            raise UserError(f"{KEY}: must be all names, or all numbers for a file without names")
        return cls(
            tuple(told[role] for role in ("text", "second") if role in told), told.get("label", told.get("score")), "score" in told
        )

    @property
    def all(self) -> tuple[str | int, ...]:
        return self.texts if self.target is None else (*self.texts, self.target)


def read_rows(path: Path, columns: Columns) -> tuple[Row, ...]:
    """The rows of a table, in order.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds a cell that is no text, no class or no score.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"data.path={path}: must end in {', '.join(FORMATS)}")
    rows = []
    try:
        for number, cells in enumerate(FORMATS[path.suffix.lower()](path, columns.all)):
            rows.append(row_of(cells, columns, f"row {number} of {path}"))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"data.path={path}: cannot be read ({error})") from error
    if not rows:
        raise UserError(f"data.path={path}: has no rows; use a file with a text a row")
    return tuple(rows)


def row_of(cells: Sequence[Any], columns: Columns, place: str) -> Row:
    """The row of the cells of `columns.all`.

    Raises:
        UserError: a cell is no text, no class or no score. The message names the place.
    """
    texts = tuple(cells[: len(columns.texts)])
    for role, text in zip(ROLES, texts, strict=False):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{KEY}.{role}: {place} has no text there")
    if columns.target is None:
        return Row(texts)
    cell = cells[len(columns.texts)]
    return Row(texts, _score(cell, place) if columns.scored else _class(cell, place))


def _score(cell: Any, place: str) -> float:
    try:
        found = float(cell)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or isinstance(cell, bool):
        raise UserError(f"{KEY}.score: {place} has {cell!r}; must be a number")
    return found


def _class(cell: Any, place: str) -> str | int:
    """A class: a number from 0, or a word. In a text file a number is written as a word."""
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, str) and cell.strip():
        return int(cell) if cell.strip().isdecimal() else cell
    if isinstance(cell, int) and cell >= 0:
        return cell
    raise UserError(f"{KEY}.label: {place} has {cell!r}; must be a number from 0, or a word")


def _lines(path: Path, columns: Sequence[Any]) -> Iterator[list[Any]]:
    """A text file with a row a line. A tab in the first line makes the separator a tab, and quotes plain characters."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix.lower() == ".tsv" or "\t" in file.readline()
        file.seek(0)
        reader = csv.reader(file, **({"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}))  # type: ignore[arg-type]
        csv.field_size_limit(2**24)  # a text may be a page
        numbers = list(columns)
        if columns and isinstance(columns[0], str):
            names = next(reader, [])
            _require(columns, names, path)
            numbers = [names.index(column) for column in columns]
        for line in reader:
            if not line:
                continue
            if short := [number for number in numbers if not 0 <= number < len(line)]:
                raise UserError(
                    f"{KEY}: line {reader.line_num} of {path} has {len(line)} columns, and no column {short[0]} (from 0)"
                )
            yield [line[number] for number in numbers]


def _objects(path: Path, columns: Sequence[Any]) -> Iterator[list[Any]]:
    """A file with a JSON object a line."""
    for number, line in lines_of(path.read_text(encoding="utf-8-sig")):
        try:
            told = json.loads(line)
        except ValueError as error:
            raise UserError(f"data.path={path}: line {number} is no JSON ({error})") from error
        if not isinstance(told, dict):
            raise UserError(f"data.path={path}: line {number} is no JSON object")
        _require(columns, list(told), path)
        yield [told[column] for column in columns]


def _parquet(path: Path, columns: Sequence[Any]) -> Iterator[list[Any]]:
    _require(columns, pq.read_schema(path).names, path)
    table = pq.read_table(path, columns=list(columns), use_threads=False)
    yield from map(list, zip(*(table.column(column).to_pylist() for column in columns), strict=True))


def _require(columns: Sequence[Any], names: Sequence[str], path: Path) -> None:
    """Raise UserError if a file with named columns lacks one."""
    if lacking := [column for column in columns if column not in names]:
        raise UserError(f"{KEY}: {path} has no column {lacking[0]}; it has {', '.join(names)}")


FORMATS: dict[str, Read] = {".csv": _lines, ".tsv": _lines, ".jsonl": _objects, ".parquet": _parquet}
