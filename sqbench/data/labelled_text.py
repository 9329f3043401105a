"""Labelled texts: a table evaluates, and another table or the rest of its rows calibrates. They share no row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.base import Batches, DataSource, Unseen, calibrated_on, commonest_first
from sqbench.data.image_splits import EVALUATION_SEED, draw, stamp
from sqbench.data.sentences import Inputs, SentenceExamples, inputs_of, random_inputs, targets_of
from sqbench.data.text_tables import Columns, Row, read_rows
from sqbench.errors import UserError
from sqbench.storage.files import digest

Stamp = tuple[Path, int, int]


@dataclass(frozen=True)
class LabelledText:
    """Rows to evaluate on, and rows to calibrate and fit heads on.

    Attributes:
        scored: whether rows have scores. Otherwise they have classes, or nothing.
        classes: the classes of all rows, in order. Empty if there are none.
        numbered: whether this order is the data set's own. Number i of a model without words for its classes is then class i.
        carved: whether both come from one table. `train` is then what `test` does not use.
    """

    name: str
    test: tuple[Row, ...]
    train: tuple[Row, ...]
    scored: bool
    classes: tuple[str, ...]
    carved: bool
    numbered: bool = False
    kind: str = "sentences"
    first: str = ""

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of the rows that evaluate, and of those that calibrate."""
        order = {"classes": list(self.classes)} if self.numbered else {}
        return (
            {"sentences": len(self.test), "test": _digest(self.test), **order},
            calibrated_on("sentences", calibration, {"train": _digest(self._training(self._drawn(calibration)))}),
        )

    def fingerprints(self) -> dict[str, str]:
        """sha256 of the rows of both splits."""
        return {"test": _digest(self.test), "train": _digest(self.train)}

    def fitting(self, count: int) -> tuple[Row, ...]:
        """The rows that a head is fitted on: `count` of the training split, or all if there are fewer."""
        return self._training(sorted(draw(len(self.train), count, 0).tolist()))

    def trained_on(self, count: int) -> str:
        """sha256 of `fitting(count)`."""
        return _digest(self.fitting(count))

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> SentenceExamples:
        """The rows as inputs of an encoder.

        Raises:
            UserError: the model's task needs other columns, or the training split has too few rows.
        """
        targets = targets_of(model, self.test, self.scored, self.classes, numbered=self.numbered)
        evaluation = inputs_of(model, self.test)
        drawn = self._drawn(calibration)
        if calibration.source == "data":
            inputs = _single(inputs_of(model, self._training(drawn)), asked=calibration.sentences, corpus=self)
        else:
            made = Inputs(tuple(random_inputs(model, calibration.sentences, calibration.seed)), (), 0)
            inputs = _single(made, asked=calibration.sentences, corpus=self)
            if calibration.source == "weights":
                inputs = Unseen(inputs.count, inputs.make, inputs.fingerprint, calibration.sentences, calibration.seed)

        def fitting(count: int) -> tuple[Inputs, Any]:
            rows = self.fitting(count)
            return inputs_of(model, rows), targets_of(model, rows, self.scored, self.classes, numbered=self.numbered)

        return SentenceExamples(evaluation, targets, inputs, self.classes, tuple(drawn), fitting)

    def _training(self, places: Sequence[int]) -> tuple[Row, ...]:
        return tuple(self.train[place] for place in places)

    def _drawn(self, calibration: CalibrationConfig) -> list[int]:
        """Positions of the calibration rows in the training split."""
        if calibration.source != "data":
            return []
        total, asked = len(self.train), calibration.sentences
        if total and asked > total:  # no rows at all are an error only when they are read; the float model does not read them
            instead = (
                "use fewer calibration.sentences or data.sentences, or data.train_path=..." if self.carved else "use at most that"
            )
            raise UserError(f"calibration.sentences={asked}: the training split of {self.name} has {total} rows; {instead}")
        found: list[int] = draw(total, asked, calibration.seed).tolist()
        return found


def _single(inputs: Inputs, *, asked: int, corpus: LabelledText) -> Batches:
    """Calibration inputs one by one, those of the commonest length first: a search replays the first ones in one batch."""
    order = commonest_first([one.shape[1] for one in inputs.tensors])

    def make(number: int) -> torch.Tensor:
        return inputs.tensors[order[number]].unsqueeze(0)

    def refuse(number: int) -> torch.Tensor:
        raise UserError(
            f"data.sentences: all rows of {corpus.name} evaluate, none of {asked} is left to calibrate on; use a smaller"
            " data.sentences, or data.train_path=..."
        )

    tensors = [inputs.tensors[at].tolist() for at in order]
    return Batches(len(order), make, digest(tensors)) if order else Batches(1, refuse, "")


def _digest(rows: tuple[Row, ...]) -> str:
    return digest([[*row.texts, row.target] for row in rows])


def fetch(cfg: DataConfig, calibration: CalibrationConfig) -> LabelledText:
    """Read the tables.

    Raises:
        UserError: a file is missing or has another layout, or there are fewer rows than are asked for.
    """
    if cfg.path is None:
        raise UserError("data.path=null: data=labelled_text needs a CSV, TSV, JSONL or parquet file with a text a row")
    columns = Columns.of(cfg.columns)
    test = _table(stamp(Path(cfg.path)), columns)
    train = None if cfg.train_path is None else _table(stamp(Path(cfg.train_path)), columns)
    found = divided(cfg, test, train, scored=columns.scored, place=cfg.path)
    if columns.target is None or columns.scored:
        return found
    return replace(found, classes=_classes((*found.test, *found.train)))


def divided(cfg: DataConfig, test: tuple[Row, ...], train: tuple[Row, ...] | None, *, scored: bool, place: str) -> LabelledText:
    """The drawn rows of a test split, and the rows that calibrate. No row has a class yet.

    Args:
        train: the training split. Without it the rows of `test` that do not evaluate calibrate.
        scored: whether rows have scores.
        place: where the test split is, for messages.

    Raises:
        UserError: there are fewer rows than are asked for.
    """
    if cfg.sentences is not None and cfg.sentences > len(test):
        raise UserError(f"data.sentences={cfg.sentences}: {place} has {len(test)} rows; use at most {len(test)}")
    chosen = set(draw(len(test), len(test) if cfg.sentences is None else cfg.sentences, EVALUATION_SEED).tolist())
    evaluated = tuple(row for at, row in enumerate(test) if at in chosen)
    rest = tuple(row for at, row in enumerate(test) if at not in chosen) if train is None else train
    seen = {row.texts for row in evaluated}
    left = tuple(row for row in rest if row.texts not in seen)  # the same texts in both splits evaluate only
    return LabelledText(cfg.name, evaluated, left, scored, (), train is None)


@lru_cache(maxsize=4)
def _table(file: Stamp, columns: Columns) -> tuple[Row, ...]:
    """The rows of a table. Files that do not change are read once per process."""
    return read_rows(file[0], columns)


def _classes(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """The names of the classes in order: numbers by size, words by the alphabet.

    Raises:
        UserError: some labels are numbers and others are words.
    """
    labels = {row.target for row in rows}
    if len({isinstance(label, str) for label in labels}) > 1:
        raise UserError("data.columns.label: holds numbers in some rows and words in others; use one of them")
    return tuple(str(label) for label in sorted(labels, key=lambda label: (label, "")))


SOURCES = {"labelled_text": DataSource("sentences", fetch)}
