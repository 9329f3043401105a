"""Parquet files with a column of encoded images and a column of labels, read a few rows at a time."""

import hashlib
import io
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqbench.config import DataConfig
from sqbench.data.image_decoding import decode
from sqbench.data.image_splits import Split, Splits, carve, sealed, stamp
from sqbench.errors import UserError
from sqbench.storage.files import known_digest

log = logging.getLogger(__name__)

BLOCK = 32 * 2**20  # bytes of encoded images held in memory
MOST_CLASSES = 1_000_000

Stamps = tuple[tuple[Path, int, int], ...]


def parquet(cfg: DataConfig) -> Splits:
    """The test and the training split of parquet files.

    `data.path` is a file, or a folder with test*.parquet (or val*.parquet) and train*.parquet. `data.train_path` is a second file
    or folder, with training images. Labels are numbers or words. Words are numbered in sorted order. Hugging Face's class names are
    used if the file has them.

    Raises:
        UserError: a file or a column is missing, or a column has another type.
    """
    test, train = _files(cfg)
    splits = _splits(*(tuple(stamp(path) for path in paths) for paths in (test, train)), cfg.image_column, cfg.label_column)
    if not len(splits.test):
        raise UserError(f"data.path={cfg.path}: {test[0]} has no rows; use a file with an image and a label a row")
    if train:
        return splits
    evaluated, left = carve(splits.test, cfg.images)
    return Splits(splits.classes, left, evaluated, carved=True)


def _files(cfg: DataConfig) -> tuple[list[Path], list[Path]]:
    """The files of the test split and of the training split. The second list is empty if one set of images serves both."""
    if cfg.path is None:
        raise UserError("data.path=null: data=parquet needs a file, or a folder with test*.parquet and train*.parquet")
    root, train = Path(cfg.path), []
    if cfg.train_path is not None:
        given = Path(cfg.train_path)
        train = [given] if given.is_file() else _matching(given, "train*", "*")
        if not train:
            raise UserError(f"data.train_path={given}: holds no parquet files; use a file, or a folder with train*.parquet")
    if root.is_file():
        test = [root]
    else:
        train = train or _matching(root, "train*")
        test = _labelled(cfg, root) or ([] if cfg.train_path is None and train else _matching(root, "*"))
    if not test and not train:
        raise UserError(f"data.path={root}: holds no parquet files; use a folder with test*.parquet and train*.parquet")
    same = len(test) == len(train) and all(map(_same, test, train))  # a copy of the test files is not a training split
    return test or train, train if test and not same else []


def _matching(root: Path, *patterns: str) -> list[Path]:
    """The sorted parquet files of the first pattern that matches, in a folder or its data/ (Hugging Face's layout)."""
    found = (sorted(folder.glob(f"{pattern}.parquet")) for pattern in patterns for folder in (root, root / "data"))
    return next((files for files in found if files), [])


def _labelled(cfg: DataConfig, root: Path) -> list[Path]:
    """The test files, or the validation files if all test labels are -1, as in ImageNet on the hub."""
    test, val = _matching(root, "test*"), _matching(root, "val*")
    if not (test and val):
        return test or val
    labels, _ = _column(test[0], cfg.label_column, "data.label_column")
    unlabelled = pa.types.is_integer(labels.type) and len(labels) > 0 and all(value == -1 for value in labels.to_pylist())
    if unlabelled:
        log.info("%s has no labels: %s evaluates", test[0].name, val[0].name)
    return val if unlabelled else test


def _same(a: Path, b: Path) -> bool:
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size and known_digest(a) == known_digest(b))


@lru_cache(maxsize=2)
def _splits(test: Stamps, train: Stamps, images: str, labels: str) -> Splits:
    """Both splits, with one numbering of the classes. Files that do not change are opened once per process."""
    found = [[_column(path, labels, "data.label_column") for path, _, _ in part] for part in (test, train)]
    values = [[value for column, _ in part for value in column.to_pylist()] for part in found]
    classes, numbers = _numbered(values, found[0][0][1], labels)
    testing, training = ([path for path, _, _ in part] for part in (test, train))
    return Splits(classes, _split(training, numbers[1], images), _split(testing, numbers[0], images))


def _column(path: Path, name: str, key: str) -> tuple[pa.ChunkedArray, list[str]]:
    """A column of labels, and the class names that the file's metadata lists.

    Raises:
        UserError: the file cannot be read, has no such column, lacks a label, or has labels that are neither integers nor strings.
    """
    schema = _schema(path, name, key)
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{key}={name}: in {path} is {kind}; use integers or strings")
    column = pq.read_table(path, columns=[name], use_threads=False).column(0).cast(kind)
    if column.null_count:
        raise UserError(f"{key}={name}: {column.null_count} rows of {path} have no label; use a file without them")
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get(name, {})
    return column, list(feature.get("names", [])) if isinstance(feature, dict) else []


def _schema(path: Path, name: str, key: str) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"data.path={path}: is no readable parquet file ({error})") from error
    if name not in schema.names:
        raise UserError(f"{key}={name}: {path} has the columns {', '.join(schema.names)}")
    return schema


def _numbered(values: list[list[Any]], names: list[str], key: str) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """The class names, and the labels of each split as numbers."""
    there = set().union(*values)
    if any(isinstance(value, str) for value in there):
        if not all(isinstance(value, str) for value in there):
            raise UserError(f"data.label_column={key}: holds numbers in one file and words in another; use one of them")
        order = {name: number for number, name in enumerate(sorted(there))}
        return tuple(order), [np.array([order[value] for value in part], dtype=np.int64) for part in values]
    if there and not 0 <= min(there) <= max(there) < MOST_CLASSES:
        raise UserError(f"data.label_column={key}: labels go from {min(there)} to {max(there)}; number the labels from 0")
    most = max(there, default=-1) + 1
    classes = tuple(names) if len(names) >= most else tuple(str(number) for number in range(most))
    return classes, [np.array(part, dtype=np.int64) for part in values]


def _split(files: Sequence[Path], labels: NDArray[np.int64], column: str) -> Split:
    cells = Cells(files, column)
    title = str(files[0] if len(files) == 1 else files[0].parent) if files else "no file"

    @cache  # 100 bytes an image; reading the image again would read a row group
    def content(index: int) -> str:
        try:
            return hashlib.sha256(cells[index]).hexdigest()
        except (OSError, ValueError) as error:  # the reader will skip this image
            return f"unreadable: {type(error).__name__}"

    return Split(labels, lambda index: decode(io.BytesIO(cells[index])), cells.name, sealed(labels, content), title)


class Cells:
    """The encoded images of a column, over several files. Memory holds one part of one row group, of about `BLOCK` bytes.

    Reading forwards reads each row group once. A row group larger than a block is read in parts. To go back before the latest
    part, it is read from its start again.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        """Read the files' footers.

        Raises:
            UserError: a file has no column of that name, or the column does not hold bytes.
        """
        self.groups: list[tuple[Path, int, int, int]] = []  # file, row group, its rows, rows of a part
        self.starts: list[int] = []  # first row of each group, counted over all files
        self._first_of: dict[Path, int] = {}
        self._leaf = column
        rows = 0
        for path in files:
            kind = _schema(path, column, "data.image_column").field(column).type
            inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
            if not any(check(inner) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
                raise UserError(f"data.image_column={column}: in {path} is {kind}; use bytes, or a struct with bytes")
            self._leaf = column if inner is kind else f"{column}.bytes"
            self._first_of[path] = rows
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                about = metadata.row_group(group)
                bulk = sum(about.column(i).total_uncompressed_size for i in range(about.num_columns))
                self.groups.append((path, group, about.num_rows, max(1, about.num_rows * BLOCK // max(bulk, BLOCK))))
                self.starts.append(rows)
                rows += about.num_rows
        self._forget()

    def _forget(self) -> None:
        self._group, self._begin, self._end = -1, 0, 0
        self._parts: Iterator[Any] = iter(())
        self._cells: Any = ()

    def __getitem__(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            OSError, ValueError: the row has no image, or the file is damaged there.
        """
        group = bisect_right(self.starts, row) - 1
        if group != self._group or row < self._begin:
            self._open(group)
        while row >= self._end:
            self._advance()
        cell = self._cells[row - self._begin].as_py()
        cell = cell["bytes"] if isinstance(cell, dict) else cell
        if cell is None:
            raise ValueError("the cell is empty")
        return bytes(cell)

    def _open(self, group: int) -> None:
        self._forget()
        path, number, _, part = self.groups[group]
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        self._parts = file.iter_batches(part, row_groups=[number], columns=[self._leaf], use_threads=False)
        self._group, self._begin, self._end = group, self.starts[group], self.starts[group]

    def _advance(self) -> None:
        parts, group = self._parts, self._group
        begin = self._end
        self._group = -1  # stays if reading fails, so that the next call opens the group again
        part = next(parts, None)
        if part is None:
            raise ValueError("the file ends before this row")
        self._group, self._begin, self._end, self._cells = group, begin, begin + part.num_rows, part.column(0)

    def name(self, row: int) -> str:
        """A row's number in its file, and the file."""
        path = self.groups[bisect_right(self.starts, row) - 1][0]
        return f"row {row - self._first_of[path]} of {path}"
