"""Labelled texts: splits that share no row, identities that are content, and targets in the model's own numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import classes, load, pairs, save_encoder

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import SOURCES
from sqbench.data.base import Unseen
from sqbench.data.labelled_text import LabelledText
from sqbench.errors import UserError

SCORED = {"text": "a", "second": "b", "score": "score"}


def corpus(path: Path | None, **options: Any) -> LabelledText:
    given = None if path is None else str(path)
    cfg = DataConfig(name="mine", source="labelled_text", path=given, **options)
    found = SOURCES["labelled_text"].fetch(cfg, CalibrationConfig())
    assert isinstance(found, LabelledText)
    return found


def identity(found: LabelledText, **calibration: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return found.identity(DataConfig(), CalibrationConfig(**calibration))


def test_one_table_is_drawn_into_two_splits(tmp_path: Path) -> None:
    path = pairs(tmp_path / "t.csv")
    found = corpus(path, columns=SCORED, sentences=30)
    texts = [{row.texts for row in split} for split in (found.test, found.train)]
    assert (len(found.test), len(found.train), found.carved) == (30, 10, True)
    assert not texts[0] & texts[1]
    assert corpus(path, columns=SCORED, sentences=30) == found
    assert {row.texts for row in corpus(path, columns=SCORED, sentences=20).test} < texts[0]  # a smaller draw is its beginning


def test_rows_of_a_training_file_that_evaluate_are_left_out(tmp_path: Path) -> None:
    test, train = pairs(tmp_path / "test.csv", 10), pairs(tmp_path / "train.csv", 20, first=10)  # which share five pairs
    found = corpus(test, train_path=str(train), columns=SCORED)
    assert (len(found.test), len(found.train)) == (10, 15)
    assert not {row.texts for row in found.test} & {row.texts for row in found.train}
    with pytest.raises(UserError, match=r"calibration\.sentences=16: the training split of mine has 15 rows"):
        identity(found, sentences=16)


def test_the_identity_is_content(tmp_path: Path) -> None:
    one, other = pairs(tmp_path / "one.csv"), pairs(tmp_path / "other.csv")
    first, again = (corpus(path, columns=SCORED, sentences=20) for path in (one, other))
    assert identity(first, sentences=5) == identity(again, sentences=5)
    assert identity(first, sentences=5)[1] != identity(first, sentences=5, seed=1)[1]
    assert identity(first, sentences=5)[1] != identity(first, sentences=6)[1]
    other.write_text(other.read_text().replace("3.5", "3"))
    changed = identity(corpus(other, columns=SCORED, sentences=20), sentences=5)
    assert changed[0] != identity(first, sentences=5)[0]
    assert identity(first, sentences=5)[0]["sentences"] == 20


def test_calibration_reads_single_texts_of_the_training_split(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    found = corpus(pairs(tmp_path / "t.csv"), columns=SCORED, sentences=20)
    made = found.examples(model, DataConfig(), CalibrationConfig(sentences=12))
    batches = list(made.calibration)
    assert len(batches) == 24  # two texts a pair
    assert {len(batch) for batch in batches} == {1}
    lengths = [batch.shape[2] for batch in batches]
    assert lengths.count(lengths[0]) == max(map(lengths.count, lengths))
    assert lengths == sorted(lengths, key=lambda length: (-lengths.count(length), length))
    expected = {tuple(one.tolist()) for row in found.train for text in row.texts for one in model.encode([(text,)])[0][0][:1]}
    assert {tuple(batch[0, 0].tolist()) for batch in batches} <= expected
    told = made.about()
    assert (told["sentences"], told["cut"], len(set(told["calibration_sentences"]))) == (20, 0, 12)
    assert len(made) == 20


@pytest.mark.parametrize("source", ["random", "weights"])
def test_without_data_texts_are_random(source: str, tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    found = corpus(pairs(tmp_path / "t.csv"), columns=SCORED)  # all rows evaluate
    calibration = CalibrationConfig(sentences=4, source=source)
    made = found.examples(model, DataConfig(), calibration).calibration
    assert isinstance(made, Unseen) == (source == "weights")
    assert {(int(batch[0, 0, 0]), int(batch[0, 0, -1]), len(batch)) for batch in made} == {(2, 3, 1)}  # [CLS] ... [SEP]
    assert found.identity(DataConfig(), calibration)[1]["source"] == source


def test_no_row_left_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    made = corpus(pairs(tmp_path / "t.csv"), columns=SCORED).examples(model, DataConfig(), CalibrationConfig())
    with pytest.raises(UserError, match=r"data\.sentences: all rows of mine evaluate"):
        next(iter(made.calibration))


def test_classes_are_numbers_of_the_model(tmp_path: Path) -> None:
    words = {"id2label": {0: "GOOD", 1: "other"}, "label2id": {"GOOD": 0, "other": 1}}
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", **words))
    found = corpus(classes(tmp_path / "t.jsonl"), sentences=30)
    assert found.classes == ("good", "other")
    made = found.examples(model, DataConfig(), CalibrationConfig(sentences=4))
    assert made.targets is not None
    assert made.targets.tolist() == [found.classes.index(str(row.target)) for row in found.test]
    inputs, labels = made.fitting(5)
    assert labels is not None
    assert len(inputs.tensors) == len(labels) == 5


@pytest.mark.parametrize(
    ("end", "options", "columns", "message"),
    [
        ("Model", {}, {"text": "a", "score": "score"}, "is for similarity and needs two texts and a score, and rows have a score"),
        ("Model", {}, {"text": "a", "second": "b"}, "needs two texts and a score, and rows have neither label nor score"),
        ("ForSequenceClassification", {}, SCORED, "is for classification and needs a label, and rows have a score"),
        ("ForSequenceClassification", {"num_labels": 1}, {"text": "a"}, "is for regression and needs a score"),
        ("ForSequenceClassification", {}, {"text": "a", "label": "b"}, r"classes \(.*\) that model\.name=.* does not know"),
    ],
)
def test_a_task_without_its_target_is_refused(
    end: str, options: dict[str, int], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = load(save_encoder(tmp_path / "m", end=end, **options))
    found = corpus(pairs(tmp_path / "t.csv"), columns=columns, sentences=20)
    with pytest.raises(UserError, match=rf"data\.columns.*{message}"):
        found.examples(model, DataConfig(), CalibrationConfig(sentences=4))


def test_values_that_cannot_work(tmp_path: Path) -> None:
    path = pairs(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"data\.path=null: data=labelled_text needs"):
        corpus(None)
    with pytest.raises(UserError, match=r"data\.sentences=41: .*t\.csv has 40 rows; use at most 40"):
        corpus(path, columns=SCORED, sentences=41)
    path.write_text("text,label\na,1\nb,good\n")
    with pytest.raises(UserError, match=r"data\.columns\.label: holds numbers in some rows and words in others"):
        corpus(path)


def test_an_input_is_its_ids_and_token_types(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m", end="ForMaskedLM"))
    made = corpus(pairs(tmp_path / "t.csv"), columns={"text": "a"}, sentences=20).examples(
        model, DataConfig(), CalibrationConfig(sentences=4)
    )
    assert made.targets is None
    assert {one.shape[0] for one in made.evaluation.tensors} == {2}
    assert all(torch.equal(one[1], torch.zeros_like(one[1])) for one in made.evaluation.tensors)
