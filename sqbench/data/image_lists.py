"""Images in one flat folder. A table of files and classes labels them, or the beginnings of their names do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sqbench.config import DataConfig
from sqbench.data import image_folders
from sqbench.data.image_splits import Split, Splits, carve
from sqbench.errors import UserError, counted

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # where the package `datasets` looks for labels
READERS = {".csv": pd.read_csv, ".tsv": pd.read_table, ".jsonl": pd.read_json, ".parquet": pd.read_parquet}
FILE_COLUMN = "file_name"  # of `datasets`

Labels = dict[str, str]  # file, relative to its folder -> class


def image_folder(cfg: DataConfig) -> Splits:
    """Images in one folder per class. With `data.labels` or a metadata file of `datasets` they may lie in one flat folder."""
    return _listed(cfg) if _has_labels(cfg) else image_folders.image_folder(cfg)


def imagenet(cfg: DataConfig) -> Splits:
    """ImageNet-1k in folders named by WordNet id, or in one flat folder with a table of files and WordNet ids."""
    return _listed(cfg, *image_folders.imagenet_classes()) if _has_labels(cfg) else image_folders.imagenet(cfg)


def _has_labels(cfg: DataConfig) -> bool:
    return cfg.path is not None and _labels_of(cfg, Path(cfg.path)) is not None


def _labels_of(cfg: DataConfig, root: Path) -> Any:
    """What labels the images of a folder: `data.labels`, else the metadata file that `datasets` reads. None if folders do."""
    if cfg.labels is not None:
        return cfg.labels
    return next((str(root / name) for name in METADATA if (root / name).is_file()), None)


def _listed(cfg: DataConfig, numbers: Mapping[str, int] | None = None, names: tuple[str, ...] | None = None) -> Splits:
    """The splits of a flat folder `data.path`. `data.train_path` is the folder of the training split.

    Args:
        numbers: class -> its label. None numbers the classes in sorted order.
        names: what classes are called, by label.

    Raises:
        UserError: a file has no class or a class has no file, or the table cannot be read.
    """
    assert cfg.path is not None
    roots = [Path(cfg.path), *([Path(cfg.train_path)] if cfg.train_path is not None else [])]
    found = [_labelled(cfg, root) for root in roots]
    classes = sorted({label for labels in found for label in labels.values()}, key=_order)
    if numbers is None:
        numbers, names = {label: number for number, label in enumerate(classes)}, tuple(classes)
    elif strange := [label for label in classes if label not in numbers]:
        raise UserError(f"data.labels={cfg.labels}: {counted(strange, 'labels that are no classes of ' + cfg.name)}")
    assert names is not None
    splits = [_split(root, labels, numbers) for root, labels in zip(roots, found, strict=True)]
    if len(splits) == 2:
        return Splits(names, splits[1], splits[0])
    evaluated, left = carve(splits[0], cfg.images)
    return Splits(names, left, evaluated, carved=True)


def _labelled(cfg: DataConfig, root: Path) -> Labels:
    """The class of every labelled image of a folder."""
    given = _labels_of(cfg, root)
    return _by_prefix(given, root) if isinstance(given, Mapping) else _by_table(cfg, Path(given).expanduser(), root)


def _by_prefix(prefixes: Mapping[Any, Any], root: Path) -> Labels:
    """The classes of a folder's images by the beginnings of their names. The longest beginning that fits counts."""
    ordered = sorted(map(str, prefixes), key=len, reverse=True)
    found, without = {}, []
    files = [str((folder / name).relative_to(root)) for folder, names in image_folders.walk(root) for name in names]
    for file in files:
        prefix = next((prefix for prefix in ordered if Path(file).name.startswith(prefix)), None)
        if prefix is None:
            without.append(file)
        else:
            found[file] = str(prefixes[prefix])
    if without or not found:
        what = counted(without, "images with none of these beginnings") if without else "no images"
        raise UserError(f"data.labels={dict(prefixes)}: {root} has {what}")
    return found


def _by_table(cfg: DataConfig, table: Path, root: Path) -> Labels:
    """The classes of a folder's images by a table. Rows whose file is not in the folder are for another split."""
    place = f"data.labels={table}"
    if table.suffix not in READERS:
        raise UserError(f"{place}: must be a {', '.join(READERS)} file, or a mapping from beginnings of file names to classes")
    try:
        options = {"lines": True} if table.suffix == ".jsonl" else {}
        rows = READERS[table.suffix](table, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be read ({error})") from error
    file = cfg.image_column if cfg.image_column in rows else FILE_COLUMN
    for key, column in (("data.image_column", file), ("data.label_column", cfg.label_column)):
        if column not in rows:
            raise UserError(f"{place}: has no column {column}; use {key}, one of {', '.join(map(str, rows.columns))}")
    found = dict(zip(rows[file].astype(str), rows[cfg.label_column].astype(str), strict=True))
    if len(found) < len(rows):
        raise UserError(f"{place}: names {len(rows) - len(found)} files twice in its column {file}")
    if outside := [name for name in found if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise UserError(f"{place}: {counted(outside, 'files outside of the folder')}")
    there = {name: label for name, label in found.items() if (root / name).is_file()}
    if not there:
        raise UserError(f"{place}: names no file of {root}, but for example {next(iter(found), 'nothing')}")
    return there


def _split(root: Path, labels: Labels, numbers: Mapping[str, int]) -> Split:
    """The images of a folder, in the order of their names."""
    files = sorted(labels)
    values = np.array([numbers[labels[file]] for file in files], dtype=np.int64)

    return image_folders.on_disk(values, lambda index: root / files[index], str(root))


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers in their own order, before words in theirs."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
