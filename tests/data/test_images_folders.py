"""Class folders on disk: every layout that is meant is found, every one that is not is named."""

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import fetch
from sqbench.data.images import ImageCorpus
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError

COLOUR = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
CAT, DOG = "n02123045", "n02085620"  # ImageNet's 281 and 151


def save(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 12, 3), shade, np.uint8)).save(path)


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4, shade: int = 0) -> None:
    """`count` images a class, no two of one `shade` alike."""
    for number, name in enumerate(classes):
        for i in range(count):
            save(folder / name / f"{i}.png", shade + number * count + i)


def found(path: Path | None, source: str = "image_folder", **options: Any) -> ImageCorpus:
    options = {"images": None, **options}
    corpus = fetch(DataConfig(name=source, source=source, path=None if path is None else str(path), **options), CalibrationConfig())
    assert isinstance(corpus, ImageCorpus)
    return corpus


def names(corpus: ImageCorpus, root: Path) -> tuple[list[str], list[str]]:
    """Paths of the test and of the training images, under a folder."""
    return tuple([str(Path(split.name(i)).relative_to(root)) for i in range(len(split))] for split in (corpus.test, corpus.train))  # type: ignore[return-value]


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path: Path, test: str) -> None:
    fill(tmp_path / test, count=2)
    fill(tmp_path / "train", count=3, shade=50)
    corpus = found(tmp_path)
    assert names(corpus, tmp_path) == (
        [f"{test}/cat/0.png", f"{test}/cat/1.png", f"{test}/dog/0.png", f"{test}/dog/1.png"],
        [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)],
    )
    assert (corpus.classes, corpus.carved, corpus.name) == (("cat", "dog"), False, "image_folder")
    assert corpus.test.labels.tolist() == [0, 0, 1, 1]
    assert corpus.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [int(np.asarray(corpus.train.load(i))[0, 0, 0]) for i in range(6)] == [50, 51, 52, 53, 54, 55]


@pytest.mark.parametrize("folder", ["", "train", "test", "val"])
def test_one_set_of_images_is_carved(tmp_path: Path, folder: str) -> None:
    fill(tmp_path / folder)
    corpus = found(tmp_path, images=5)
    evaluated, left = names(corpus, tmp_path / folder)
    assert (len(evaluated), len(left), corpus.carved) == (5, 3, True)
    assert not set(evaluated) & set(left)
    assert names(found(tmp_path, images=5), tmp_path / folder) == (evaluated, left)
    assert set(names(found(tmp_path, images=3), tmp_path / folder)[0]) < set(evaluated)
    with pytest.raises(UserError, match=r"data\.images=9: .* has 8 images for evaluation and calibration; use fewer than 8"):
        found(tmp_path, images=9)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, ("bus", "car", "train"), 2)
    assert found(tmp_path).classes == ("bus", "car", "train")


def test_a_training_folder_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "a", count=2)
    fill(tmp_path / "b", count=3, shade=50)
    corpus = found(tmp_path / "a", train_path=str(tmp_path / "b"))
    assert (len(corpus.test), len(corpus.train), corpus.carved) == (4, 6, False)
    fill(tmp_path / "c" / "train", count=5)
    assert len(found(tmp_path / "a", train_path=str(tmp_path / "c")).train) == 10


def test_the_same_folder_twice_is_carved(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    assert found(tmp_path, images=2).carved
    assert found(tmp_path / "train", images=2, train_path=str(tmp_path / "test")).carved


def test_images_may_lie_deeper_and_other_files_do_not_count(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "images" / "b.JPEG")
    save(tmp_path / "cat" / "a.jpg")
    save(tmp_path / "dog" / "ü (1).png")
    for other in ("cat/boxes.txt", "cat/._a.jpg", ".cache/x.jpg", "dog/.hidden/y.png", "notes.md"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"?")
    corpus = found(tmp_path)
    assert names(corpus, tmp_path)[0] == ["cat/a.jpg", "cat/images/b.JPEG", "dog/ü (1).png"]


def test_a_file_that_comes_later_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    before = found(tmp_path)
    save(tmp_path / "cat" / "new.png")
    import os

    os.utime(tmp_path / "cat", ns=(1, 1))  # a clock may be coarser than this test
    assert len(found(tmp_path).test) == len(before.test) + 1


# ---------------------------------------------------------------- what is refused


def test_layouts_that_do_not_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.path=null: data=image_folder needs a folder; use a folder a class .*train/cat/1\.jpg"
    ):
        found(None)
    with pytest.raises(UserError, match=rf"data\.path={re.escape(str(tmp_path))}: .* has no class folders; use a folder a class"):
        found(tmp_path)
    save(tmp_path / "1.png")
    with pytest.raises(UserError, match="has no class folders"):
        found(tmp_path)
    fill(tmp_path / "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"/test has no class folders"):
        found(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(tmp_path: Path, split: str) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    (tmp_path / split / "bird").mkdir()
    (tmp_path / split / "bird" / "readme.txt").touch()
    with pytest.raises(UserError, match=rf"/{split} has class folders without images \(bird\): no \.jpg, "):
        found(tmp_path)


def test_other_classes_in_test_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", ("cat", "dog"))
    fill(tmp_path / "test", ("cat", "fox"))
    with pytest.raises(UserError, match=r"hold other classes \(only .*/train: dog; only .*/test: fox\)"):
        found(tmp_path)


# ---------------------------------------------------------------- corrupt files


def test_corrupt_files_are_skipped_and_everything_else_is_evaluated(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    noise = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "JPEG")
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"no image")
    (tmp_path / "test" / "cat" / "a.jpg").write_bytes(noise.getvalue()[:900])
    (tmp_path / "test" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    corpus = found(tmp_path)
    data, calibration = DataConfig(images=None), CalibrationConfig(images=8)
    corpus.identity(data, calibration)
    examples = corpus.examples(SimpleNamespace(preprocessing=COLOUR), data, calibration)
    read = [index for batch in examples.evaluation.batches(4) for index in batch.index.tolist()]
    assert len(read) == 8 + 2 - 3
    reasons = {Path(name).name: reason for name, reason in examples.about()["skipped"].items()}
    assert sorted(reasons) == ["0.png", "a.jpg", "gone.png"]
    assert "cannot identify image file" in reasons["0.png"]
    assert "truncated" in reasons["a.jpg"]
    assert "No such file" in reasons["gone.png"]


def test_identity_follows_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        fill(tmp_path / place / "train")
        fill(tmp_path / place / "test", shade=90)
    spec = DataConfig(images=4), CalibrationConfig(images=4)
    here, there = (found(tmp_path / place).identity(*spec) for place in ("here", "there"))
    assert here == there
    corpus = found(tmp_path / "there")
    drawn = corpus.examples(SimpleNamespace(preprocessing=COLOUR), *spec).evaluation.indices.tolist()
    save(Path(corpus.test.name(drawn[0])), 255)
    assert found(tmp_path / "there").identity(*spec)[0] != here[0]


def test_a_file_and_a_row_of_the_same_bytes_are_the_same_content(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fill(tmp_path / "images", count=3)
    corpus = found(tmp_path / "images")
    cells = [Path(corpus.test.name(i)).read_bytes() for i in range(6)]
    pq.write_table(pa.table({"image": cells, "label": corpus.test.labels}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet", "parquet").test.digest(range(6)) == corpus.test.digest(range(6))


# ---------------------------------------------------------------- ImageNet


def test_imagenet_labels_are_its_own_when_only_some_classes_are_there(tmp_path: Path) -> None:
    fill(tmp_path / "val", (CAT, DOG), 2)
    fill(tmp_path / "train", (CAT,), 3)
    corpus = found(tmp_path, "imagenet")
    assert len(corpus.classes) == len(set(corpus.classes)) == 1000
    assert corpus.test.labels.tolist() == [151, 151, 281, 281]
    assert corpus.train.labels.tolist() == [281] * 3
    assert corpus.classes[281].startswith(f"{CAT} tabby")


def test_imagenet_without_a_training_split_calibrates_on_what_is_left(tmp_path: Path) -> None:
    fill(tmp_path / "val", (CAT, DOG), 5)
    for root in (tmp_path, tmp_path / "val"):
        corpus = found(root, "imagenet", images=6)
        evaluated, left = names(corpus, tmp_path)
        assert (len(evaluated), len(left)) == (6, 4)
        assert not set(evaluated) & set(left)


def test_imagenet_says_how_it_is_laid_out(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data=imagenet needs a folder; use val/n01440764/ILSVRC2012_val_00000293\.JPEG and train/"
    ):
        found(None, "imagenet")
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(UserError, match=r"has no class folders; use val/n01440764/"):
        found(tmp_path / "val", "imagenet")
    fill(tmp_path / "val", ("tabby", CAT))
    with pytest.raises(UserError, match=r"/val has folders that are no ImageNet-1k classes \(tabby\); use val/n01440764/"):
        found(tmp_path, "imagenet")
