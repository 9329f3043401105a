"""Tables of texts: every format reads alike, and what is no text, class or score is refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqbench.data.text_tables import Columns, Row, read_rows
from sqbench.errors import UserError

ROWS = [('a cat, "red"', "the dog", 1), ("a bird", "ein Vögelchen", 0), ("x", "y", 1)]
NAMED = Columns.of({"text": "one", "second": "two", "label": "class"})


def write(path: Path, rows: list[tuple[Any, ...]] = ROWS, names: tuple[str, ...] = ("one", "two", "class")) -> Path:
    """The rows in the format that the file's name says."""
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(objects), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in objects), encoding="utf-8")
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(map(str, row)) for row in [names, *rows]), encoding="utf-8")
    else:
        quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in [names, *rows]]
        path.write_text("\n".join(quoted), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "T.CSV"])
def test_every_format_reads_the_same_rows(name: str, tmp_path: Path) -> None:
    if name == "T.CSV":
        write(tmp_path / "t.csv").rename(tmp_path / name)
    else:
        write(tmp_path / name)
    assert read_rows(tmp_path / name, NAMED) == tuple(Row(row[:2], row[2]) for row in ROWS)


def test_a_file_without_names_has_numbers_from_0(tmp_path: Path) -> None:
    """The layout of the STS benchmark: tabs in a .csv, quotes that are characters, and lines of unequal length."""
    path = tmp_path / "sts.csv"
    path.write_text('news\tx\t2.8\tA "boy runs.\tTwo boys.\nnews\tx\t4\tA cat.\tA dog.\tand\tmore\n')
    found = read_rows(path, Columns.of({"text": 3, "second": 4, "score": 2}))
    assert found == (Row(('A "boy runs.', "Two boys."), 2.8), Row(("A cat.", "A dog."), 4.0))
    with pytest.raises(UserError, match=r"data\.columns: line 1 of .*sts\.csv has 5 columns, and no column 5 \(from 0\)"):
        read_rows(path, Columns.of({"text": 5}))


def test_null_stands_for_text_and_label(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [("a", "good"), ("b", "12")], ("text", "label"))
    assert [row.target for row in read_rows(tmp_path / "t.csv", Columns.of(None))] == ["good", 12]
    assert read_rows(tmp_path / "t.csv", Columns.of({"text": "text"}))[0] == Row(("a",), None)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"text": "a", "sentence": "b"}, r"data\.columns\.sentence: .*known: label, score, second, text"),
        ({"label": "a"}, r"data\.columns: must name the column of the text"),
        ({"text": "a", "label": "b", "score": "c"}, r"data\.columns: must have a label .* or a score .*, not both"),
        ({"text": "a", "label": 1}, r"data\.columns: must be all names, or all numbers"),
        ("text", r"data\.columns=text: must be a mapping, for example \{text: sentence, label: label\}"),
        ({"text": True}, r"data\.columns\.text=True: must be the name of a column"),
    ],
)
def test_columns_that_make_no_sense(told: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Columns.of(told)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        ("t.csv", [("a", "x")], {"text": "words"}, r"data\.columns: .*t\.csv has no column words; it has text, label"),
        ("t.parquet", [("a", "x")], {"text": "words"}, r"has no column words; it has text, label"),
        ("t.jsonl", [("a", "x")], {"text": "words"}, r"has no column words; it has text, label"),
        ("t.csv", [("a", "x"), (" ", "x")], None, r"data\.columns\.text: row 1 of .*t\.csv has no text there"),
        ("t.csv", [("a", "x")], {"text": "text", "score": "label"}, r"data\.columns\.score: row 0 .* has 'x'; must be a number"),
        ("t.jsonl", [("a", -1)], None, r"data\.columns\.label: row 0 .* has -1; must be a number from 0, or a word"),
        ("t.jsonl", [("a", 0.5)], None, r"data\.columns\.label: row 0 .* has 0\.5; must be"),
        ("t.csv", [], None, r"data\.path=.*t\.csv: has no rows"),
        ("t.txt", [("a", "x")], None, r"data\.path=.*t\.txt: must end in \.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, rows: list[tuple[Any, ...]], columns: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path / name, rows, ("text", "label"))
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / name, Columns.of(columns))


def test_a_line_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"line 2 is no JSON object"):
        read_rows(tmp_path / "t.jsonl", Columns.of(None))
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"line 1 is no JSON \("):
        read_rows(tmp_path / "t.jsonl", Columns.of(None))


def test_other_line_separators_of_unicode_stay_inside_a_text(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [("a\u2028b", 1)], ("text", "label"))
    assert read_rows(tmp_path / "t.jsonl", Columns.of(None)) == (Row(("a\u2028b",), 1),)
