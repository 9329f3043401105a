"""Parquet files of images: files and columns are found, rows read a block at a time, classes numbered once for both splits."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import fetch, image_tables
from sqbench.data.images import ImageCorpus
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError

GRAY = Preprocessing((1, 4, 4), (0.0,), (1.0,), interpolation="bilinear")


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path, labels: list[Any], shade: int = 0, group: int = 4, names: tuple[str, str] = ("image", "label"), **kind: Any
) -> Path:
    """A file whose row i is an image all of shade + i."""
    images: Any = pa.array([png(shade + i) for i in range(len(labels))], pa.binary())
    if kind.get("struct"):
        images = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images.to_pylist())]
    table = pa.table({names[0]: images, "path": ["?"] * len(labels), names[1]: pa.array(labels, kind.get("type"))})
    if "metadata" in kind:
        table = table.replace_schema_metadata(kind["metadata"])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def found(path: Path | None, images: int | None = None, **options: Any) -> ImageCorpus:
    given = None if path is None else str(path)
    corpus = fetch(DataConfig(name="parquet", source="parquet", path=given, images=images, **options), CalibrationConfig())
    assert isinstance(corpus, ImageCorpus)
    return corpus


def shades(corpus: ImageCorpus) -> tuple[list[int], list[int]]:
    """Of the test and of the training images."""
    return tuple([int(np.asarray(split.load(i))[0, 0]) for i in range(len(split))] for split in (corpus.test, corpus.train))  # type: ignore[return-value]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("test", ["test.parquet", "validation-00000-of-00001.parquet", "data/val.parquet"])
def test_a_folder_has_its_splits_by_name(tmp_path: Path, test: str) -> None:
    write(tmp_path / test, [0, 1, 0])
    write(tmp_path / test.replace(Path(test).name, "train-00000-of-00002.parquet"), [1, 0], 100)
    write(tmp_path / test.replace(Path(test).name, "train-00001-of-00002.parquet"), [1, 1, 0], 200)
    corpus = found(tmp_path)
    assert shades(corpus) == ([0, 1, 2], [100, 101, 200, 201, 202])
    assert corpus.train.labels.tolist() == [1, 0, 1, 1, 0]
    assert corpus.test.labels.tolist() == [0, 1, 0]
    assert corpus.train.name(3) == f"row 1 of {tmp_path / Path(test).parent / 'train-00001-of-00002.parquet'}"
    assert (corpus.classes, corpus.carved) == (("0", "1"), False)


def test_two_files_are_the_splits(tmp_path: Path) -> None:
    test, train = write(tmp_path / "a.parquet", [0, 1]), write(tmp_path / "b.parquet", [1, 0, 2], 50)
    corpus = found(test, train_path=str(train))
    assert shades(corpus) == ([0, 1], [50, 51, 52])
    assert corpus.classes == ("0", "1", "2")  # of both: the test file may lack one
    write(tmp_path / "more" / "train.parquet", [0] * 7, 90)
    assert len(found(test, train_path=str(tmp_path / "more")).train) == 7


@pytest.mark.parametrize("name", ["one.parquet", "train.parquet", "test.parquet"])
@pytest.mark.parametrize("folder", [False, True])
def test_one_set_of_rows_is_carved(tmp_path: Path, name: str, folder: bool) -> None:
    path = write(tmp_path / name, [0, 1] * 5)
    corpus = found(tmp_path if folder else path, 6)
    evaluated, left = shades(corpus)
    assert (len(evaluated), corpus.carved) == (6, True)
    assert sorted(evaluated + left) == list(range(10))
    assert corpus.test.labels.tolist() == [shade % 2 for shade in evaluated]
    assert shades(found(path, 6)) == (evaluated, left)
    with pytest.raises(UserError, match=r"data\.images=11: .* has 10 images for evaluation and calibration; use fewer than 10"):
        found(path, 11)


def test_a_copy_of_the_test_file_is_no_training_split(tmp_path: Path) -> None:
    path = write(tmp_path / "test.parquet", [0, 1, 0, 1])
    (tmp_path / "train.parquet").write_bytes(path.read_bytes())
    assert found(tmp_path, 2).carved
    assert found(path, 2, train_path=str(path)).carved


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [-1, -1])
    write(tmp_path / "validation.parquet", [0, 1], 50)
    assert shades(found(tmp_path))[0] == [50, 51]
    write(tmp_path / "test.parquet", [1, 0])
    assert shades(found(tmp_path))[0] == [0, 1]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1, 0])
    before = found(path)
    write(path, [0, 1, 0, 1], 30)
    assert shades(found(path))[0] == [30, 31, 32, 33]
    assert found(path).fingerprints() != before.fingerprints()


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("kind", [None, pa.int8(), pa.uint64()])
def test_columns_of_bytes_and_of_hugging_faces_struct(tmp_path: Path, struct: bool, kind: Any) -> None:
    path = write(tmp_path / "a.parquet", [2, 0, 1], names=("img", "fine_label"), struct=struct, type=kind)
    corpus = found(path, image_column="img", label_column="fine_label")
    assert shades(corpus)[0] == [0, 1, 2]
    assert corpus.test.labels.tolist() == [2, 0, 1]
    assert corpus.test.labels.dtype == np.int64


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_words_are_numbered_in_sorted_order_over_both_splits(tmp_path: Path, kind: Any) -> None:
    write(tmp_path / "test.parquet", ["fox", "ant"], type=kind)
    write(tmp_path / "train.parquet", ["fox", "cat", "ant"], 9, type=kind)
    corpus = found(tmp_path)
    assert corpus.classes == ("ant", "cat", "fox")
    assert corpus.test.labels.tolist() == [2, 0]
    assert corpus.train.labels.tolist() == [2, 1, 0]


def test_hugging_faces_class_names_are_used(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["no", "yes", "maybe"], "_type": "ClassLabel"}}}}
    path = write(tmp_path / "a.parquet", [0, 1], metadata={"huggingface": json.dumps(features)})
    assert found(path).classes == ("no", "yes", "maybe")


def test_columns_that_do_not_work_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1])
    with pytest.raises(UserError, match=r"data\.image_column=img: .*a\.parquet has the columns image, path, label"):
        found(path, image_column="img")
    with pytest.raises(UserError, match=r"data\.label_column=fine: .*a\.parquet has the columns image, path, label"):
        found(path, label_column="fine")
    with pytest.raises(UserError, match=r"data\.image_column=path: in .* is string; use bytes"):
        found(path, image_column="path")
    with pytest.raises(UserError, match=r"data\.label_column=image: in .* is binary; use integers or strings"):
        found(path, label_column="image")
    with pytest.raises(UserError, match=r"data\.label_column=label: labels go from -1 to 3; number the labels from 0"):
        found(write(tmp_path / "b.parquet", [3, -1]))
    with pytest.raises(UserError, match=r"data\.label_column=label: 1 rows of .*c\.parquet have no label"):
        found(write(tmp_path / "c.parquet", [3, None]))
    with pytest.raises(UserError, match=r"d\.parquet has no rows"):
        found(write(tmp_path / "d.parquet", [], type=pa.int32()))
    with pytest.raises(UserError, match="numbers in one file and words in another"):
        found(path, train_path=str(write(tmp_path / "e.parquet", ["a"])))


def test_files_that_are_not_there_or_not_parquet_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=null: data=parquet needs a file, or a folder with test\*\.parquet"):
        found(None)
    with pytest.raises(UserError, match=r"data\.path=.*: holds no parquet files; use a folder with test\*\.parquet and train"):
        found(tmp_path)
    path = write(tmp_path / "x" / "a.parquet", [0, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.train_path=.*/empty: holds no parquet files"):
        found(path, train_path=str(tmp_path / "empty"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=r"bad\.parquet: is no readable parquet file"):
        found(tmp_path / "bad.parquet")


# ---------------------------------------------------------------- reading


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    group=st.integers(1, 9),
    block=st.sampled_from([1, 300, 10**6]),
    picks=st.lists(st.integers(0, 26), max_size=12),
)
def test_any_row_is_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int, block: int, picks: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    files = [write(folder / f"{i}.parquet", [0] * n, starts[i], group) for i, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_tables, "BLOCK", block)
        cells = image_tables.Cells(files, "image")
    for pick in (pick % sum(sizes) for pick in picks):
        assert cells[pick] == png(pick)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every part that is read from here on."""
    parts: list[int] = []
    inner = pq.ParquetFile.iter_batches

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        for part in inner(self, *arguments, **options):
            parts.append(part.num_rows)
            yield part

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    return parts


def test_only_the_row_groups_that_are_asked_for_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [0] * 40, group=4)
    parts = opened(monkeypatch)
    corpus = found(path)
    assert parts == []
    for index in (9, 10, 11, 33):
        corpus.test.load(index)
    assert parts == [4, 4]


def test_a_large_row_group_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [0] * 64, group=64)
    bulk = pq.read_metadata(path).row_group(0)
    monkeypatch.setattr(image_tables, "BLOCK", sum(bulk.column(i).total_uncompressed_size for i in range(3)) // 8)
    parts = opened(monkeypatch)
    corpus = found(path)
    assert shades(corpus)[0] == list(range(64))
    assert max(parts) <= 8
    assert sum(parts) == 64
    corpus.test.load(0)
    assert sum(parts) == 64 + parts[0]  # back to the start


def test_rows_without_an_image_are_corrupt(tmp_path: Path) -> None:
    cells = [png(0), None, b"no image", png(3)[:40], png(4)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary()), "label": [0] * 5}), tmp_path / "a.parquet")
    structs = [None if cell is None else {"bytes": cell} for cell in cells]
    pq.write_table(pa.table({"image": structs, "label": [0] * 5}), tmp_path / "b.parquet")
    for path in (tmp_path / "a.parquet", tmp_path / "b.parquet"):
        corpus = found(path)
        spec = DataConfig(images=None), CalibrationConfig()
        corpus.identity(*spec)
        evaluation = corpus.examples(SimpleNamespace(preprocessing=GRAY), *spec).evaluation
        assert [batch.index.tolist() for batch in evaluation.batches(3)] == [[0], [4]]
        assert sorted(evaluation.skipped) == [f"row {i} of {path}" for i in (1, 2, 3)]
        assert evaluation.skipped[f"row 1 of {path}"] == "the cell is empty"
