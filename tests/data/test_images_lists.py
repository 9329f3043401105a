"""Images in one flat folder: a table labels them, or the beginnings of their names do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import fetch
from sqbench.data.images import ImageCorpus
from sqbench.errors import UserError

CAT, DOG = "n02123045", "n02085620"  # ImageNet's 281 and 151
FILES = ("cat_0.png", "cat_1.png", "dog_0.png", "dog_1.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade, name in enumerate(FILES):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(folder / name)
    return folder


def table(path: Path, **columns: list[Any]) -> str:
    frame = pd.DataFrame(columns)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def found(path: Path, source: str = "image_folder", **options: Any) -> ImageCorpus:
    corpus = fetch(DataConfig(name=source, source=source, path=str(path), **{"images": None, **options}), CalibrationConfig())
    assert isinstance(corpus, ImageCorpus)
    return corpus


def labelled(corpus: ImageCorpus) -> dict[str, int]:
    return {Path(corpus.test.name(i)).name: int(label) for i, label in enumerate(corpus.test.labels)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_labels_a_flat_folder(photos: Path, tmp_path: Path, suffix: str) -> None:
    labels = table(tmp_path / f"labels{suffix}", image=list(FILES[::-1]), label=["dog", "dog", "cat", "cat"])
    corpus = found(photos, labels=labels)
    assert labelled(corpus) == {"cat_0.png": 0, "cat_1.png": 0, "dog_0.png": 1, "dog_1.png": 1}
    assert (corpus.classes, corpus.carved) == (("cat", "dog"), True)
    assert [int(np.asarray(corpus.test.load(i))[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]


def test_labels_that_are_numbers_keep_their_order(photos: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", file=list(FILES), number=[10, 9, 9, 2])
    corpus = found(photos, labels=labels, image_column="file", label_column="number")
    assert corpus.classes == ("2", "9", "10")
    assert labelled(corpus) == {"cat_0.png": 2, "cat_1.png": 1, "dog_0.png": 1, "dog_1.png": 0}


def test_names_of_files_label_them_and_the_longest_beginning_counts(photos: Path) -> None:
    corpus = found(photos, labels={"cat": "tabby", "dog": "dog", "dog_1": "puppy"})
    assert corpus.classes == ("dog", "puppy", "tabby")
    assert labelled(corpus) == {"cat_0.png": 2, "cat_1.png": 2, "dog_0.png": 0, "dog_1.png": 1}


def test_a_metadata_file_of_datasets_is_found(photos: Path) -> None:
    table(photos / "metadata.csv", file_name=list(FILES), label=["a", "b", "a", "b"])
    assert labelled(found(photos)) == {"cat_0.png": 0, "cat_1.png": 1, "dog_0.png": 0, "dog_1.png": 1}


def test_a_second_folder_is_the_training_split(photos: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(more / "new.png")
    labels = table(tmp_path / "labels.csv", image=[*FILES, "new.png"], label=["cat", "cat", "dog", "dog", "dog"])
    corpus = found(photos, labels=labels, train_path=str(more))
    assert (len(corpus.test), len(corpus.train), corpus.train.labels.tolist()) == (4, 1, [1])


def test_imagenet_takes_wordnet_ids(photos: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", image=list(FILES), label=[CAT, CAT, DOG, DOG])
    assert labelled(found(photos, "imagenet", labels=labels)) == {
        "cat_0.png": 281,
        "cat_1.png": 281,
        "dog_0.png": 151,
        "dog_1.png": 151,
    }


def test_the_digest_follows_content_and_labels(photos: Path, tmp_path: Path) -> None:
    def digest(*labels: str) -> str:
        path = table(tmp_path / f"{'-'.join(labels)}.csv", image=list(FILES), label=list(labels))
        return found(photos, labels=path).test.digest([0, 1, 2, 3])

    assert digest("a", "b", "a", "b") == digest("c", "d", "c", "d")  # the same numbers
    assert digest("a", "b", "a", "b") != digest("a", "a", "b", "b")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"cat": "cat"}, r"2 images with none of these beginnings"),
        ("{tmp}/missing.csv", r"missing\.csv: cannot be read"),
        ("{tmp}/labels.txt", r"must be a \.csv, \.tsv, \.jsonl, \.parquet file, or a mapping"),
    ],
)
def test_what_labels_nothing_is_named(photos: Path, tmp_path: Path, labels: Any, words: str) -> None:
    given = labels.format(tmp=tmp_path) if isinstance(labels, str) else labels
    with pytest.raises(UserError, match=words):
        found(photos, labels=given)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"file": ["cat_0.png"], "label": ["cat"]}, r"has no column file_name; use data\.image_column, one of file, label"),
        ({"image": ["cat_0.png"], "class": ["cat"]}, r"has no column label; use data\.label_column, one of image, class"),
        ({"image": ["cat_0.png"] * 2, "label": ["cat", "dog"]}, r"names 1 files twice"),
        ({"image": ["../secret.png"], "label": ["cat"]}, r"files outside of the folder"),
        ({"image": ["bird.png"], "label": ["bird"]}, r"names no file of .*photos, but for example bird\.png"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(photos: Path, tmp_path: Path, columns: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        found(photos, labels=table(tmp_path / "labels.csv", **columns))


def test_imagenet_refuses_other_classes(photos: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", image=list(FILES), label=[CAT, CAT, "dog", "dog"])
    with pytest.raises(UserError, match=r"labels that are no classes of imagenet"):
        found(photos, "imagenet", labels=labels)
