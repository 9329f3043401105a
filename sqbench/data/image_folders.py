"""Image files in one folder per class: torchvision's ImageFolder layout, and ImageNet's with its own class numbers."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sqbench.config import DataConfig
from sqbench.data.image_decoding import decode
from sqbench.data.image_splits import Split, Splits, carve, sealed
from sqbench.errors import UserError
from sqbench.storage.files import known_digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUT = "use a folder a class with its images inside: train/cat/1.jpg and test/cat/2.jpg, or cat/1.jpg alone"
IMAGENET = "use val/n01440764/ILSVRC2012_val_00000293.JPEG and train/n01440764/n01440764_18.JPEG, a folder a WordNet id"


def image_folder(cfg: DataConfig) -> Splits:
    """The splits of a folder `data.path` with train/ and test/ (or val/), or with class folders alone.

    Classes are numbered in the order of their names.

    Raises:
        UserError: a class folder has no images, there are no class folders, or test/ and train/ have different classes.
    """
    test, train = _parts(cfg, ("test", "val"), LAYOUT)
    classes = _classes(cfg, test, LAYOUT)
    if train is not None and (known := _classes(cfg, train, LAYOUT)) != classes:
        only = [f"only {folder}: {_some(set(a) - set(b))}" for folder, a, b in ((train, known, classes), (test, classes, known))]
        raise UserError(f"data.path={cfg.path}: {train} and {test} hold other classes ({'; '.join(only)})")
    return _splits(cfg, test, train, {name: number for number, name in enumerate(classes)}, tuple(classes))


def imagenet(cfg: DataConfig) -> Splits:
    """ImageNet-1k, or some of its classes, in folders named by WordNet id. Labels are ImageNet's own.

    Raises:
        UserError: a class folder has no images, there are no class folders, or a folder is not one of the 1,000 ids.
    """
    numbers, names = imagenet_classes()
    test, train = _parts(cfg, ("val",), IMAGENET)
    for folder in (test, train):
        if folder is not None and (other := set(_classes(cfg, folder, IMAGENET)) - numbers.keys()):
            raise UserError(
                f"data.path={cfg.path}: {folder} has folders that are no ImageNet-1k classes ({_some(other)}); {IMAGENET}"
            )
    return _splits(cfg, test, train, numbers, names)


def imagenet_classes() -> tuple[dict[str, int], tuple[str, ...]]:
    """WordNet id -> label, and what the classes are called, by label."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    numbers = {name: number for number, name in enumerate(info.label_names())}
    return numbers, tuple(f"{name} {about}" for name, about in zip(numbers, info.label_descriptions(), strict=True))  # two cranes


def _parts(cfg: DataConfig, names: tuple[str, ...], layout: str) -> tuple[Path, Path | None]:
    """The folders of the test split and of the training split. The second is None if one set of images serves both."""
    if cfg.path is None:
        raise UserError(f"data.path=null: data={cfg.name} needs a folder; {layout}")
    root = Path(cfg.path)
    there = [root / name for name in names if (root / name).is_dir()]
    train: Path | None = root / "train"
    if cfg.train_path is not None:
        train = Path(cfg.train_path)
        train = train / "train" if _folders(train / "train") else train
    elif not _folders(root / "train"):  # missing, or a class of that name
        train = None
    if not there and cfg.train_path is None and train is not None:
        return train, None
    test = next((folder for folder in there if _folders(folder)), there[0] if there and train is not None else root)
    return test, None if train is not None and train.exists() and train.samefile(test) else train


def _classes(cfg: DataConfig, folder: Path, layout: str) -> list[str]:
    """The sorted names of a split's class folders. Each must have images."""
    if not (classes := _folders(folder)):
        raise UserError(f"data.path={cfg.path}: {folder} has no class folders; {layout}")
    if empty := {name for name in classes if not any(files for _, files in walk(folder / name))}:
        raise UserError(
            f"data.path={cfg.path}: {folder} has class folders without images ({_some(empty)}): no {', '.join(SUFFIXES)}"
        )
    return list(classes)


def _splits(cfg: DataConfig, test: Path, train: Path | None, numbers: Mapping[str, int], classes: tuple[str, ...]) -> Splits:
    if train is not None:
        return Splits(classes, _split(train, numbers), _split(test, numbers))
    evaluated, left = carve(_split(test, numbers), cfg.images)
    return Splits(classes, left, evaluated, carved=True)


def _split(folder: Path, numbers: Mapping[str, int]) -> Split:
    """The images of a folder's class folders, sorted by class and path."""
    groups = [(numbers[name], where, files) for name in _folders(folder) for where, files in walk(folder / name)]
    labels = np.repeat([number for number, _, _ in groups], [len(files) for _, _, files in groups]).astype(np.int64)
    ends = np.array(list(accumulate(len(files) for _, _, files in groups)))

    def path(index: int) -> Path:
        group = int(np.searchsorted(ends, index, side="right"))
        _, where, files = groups[group]
        return where / files[index - int(ends[group])]  # a negative index, counted from the end

    return on_disk(labels, path, str(folder))


def on_disk(labels: NDArray[np.int64], path: Callable[[int], Path], title: str) -> Split:
    """A split of image files. `path` finds the file of a position."""

    def load(index: int) -> Image.Image:
        with path(index).open("rb") as handle:
            return decode(handle)

    def content(index: int) -> str:
        try:
            return known_digest(path(index))
        except OSError as error:  # the reader will skip this image
            return f"unreadable: {type(error).__name__}"

    return Split(labels, load, lambda index: str(path(index)), sealed(labels, content), title)


def walk(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder and all folders below it, each with the sorted names of its images."""
    folders, files = _entries(folder, folder.stat().st_mtime_ns)
    yield folder, files
    for name in folders:
        yield from walk(folder / name)


def _folders(folder: Path) -> tuple[str, ...]:
    return _entries(folder, folder.stat().st_mtime_ns)[0] if folder.is_dir() else ()


@lru_cache(maxsize=100_000)
def _entries(folder: Path, modified: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the folders and of the image files in a folder. A folder that does not change is listed once per process."""
    try:
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error}); use a folder that you may read") from error
    return (
        tuple(sorted(name for name, is_folder in entries if is_folder)),
        tuple(sorted(name for name, is_folder in entries if not is_folder and name.lower().endswith(SUFFIXES))),
    )


def _some(names: set[str]) -> str:
    """Up to five names, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") if listed else "none"
