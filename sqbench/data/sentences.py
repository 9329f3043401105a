"""Texts as inputs of an encoder. A batch holds texts of one length, so that there is no padding anywhere."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqbench.data.base import Batches
from sqbench.data.text_tables import Row
from sqbench.errors import UserError, counted
from sqbench.storage.files import digest

FEW = 8  # texts of one length in a batch of `SentenceExamples.inputs`
RANDOM_TOKENS = 32  # of a random text, besides the special ones


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of an encoder, one for every text that it reads.

    Attributes:
        tensors: [fields, tokens] of each text. For `similarity` the first texts of all rows come before the second ones.
        rows: the number of the row of each.
        cut: how many texts were cut to the longest that the model takes.
    """

    tensors: tuple[Tensor, ...]
    rows: tuple[int, ...]
    cut: int

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers [B] of texts of one length and their inputs [B, fields, tokens], at most `size` at once, short texts first."""
        lengths = torch.tensor([one.shape[1] for one in self.tensors])
        for length in lengths.unique().tolist():
            for numbers in torch.nonzero(lengths == length).flatten().split(size):
                yield numbers, torch.stack([self.tensors[number] for number in numbers.tolist()])


@dataclass(frozen=True, eq=False)
class SentenceExamples:
    """Labelled texts made for one model.

    Attributes:
        evaluation: the inputs of the rows that evaluate.
        targets: [rows] their scores (float64) or the numbers of their classes (int64). None if rows have neither.
        calibration: inputs of the training split one by one, or random ones.
        classes: names of the classes.
        calibrating: positions of the calibration rows in the training split. Empty if no rows calibrate.
        fitting: number of rows -> the inputs of as many rows of the training split, or of all, and the numbers of their classes.
    """

    evaluation: Inputs
    targets: NDArray[Any] | None
    calibration: Batches
    classes: tuple[str, ...]
    calibrating: tuple[int, ...]
    fitting: Callable[[int], tuple[Inputs, NDArray[Any] | None]]

    def __len__(self) -> int:
        return len(set(self.evaluation.rows))

    def inputs(self) -> Iterator[Tensor]:
        """The inputs of the rows that evaluate, a few of one length at a time."""
        return (batch for _, batch in self.evaluation.batches(FEW))

    def fingerprint(self) -> str:
        """sha256 of the inputs that evaluate and of their targets."""
        targets = None if self.targets is None else self.targets.tolist()
        return digest([[one.tolist() for one in self.evaluation.tensors], targets])

    def about(self) -> dict[str, Any]:
        """The number of rows that evaluate, the number of texts that were cut, and the positions of the calibration rows."""
        return {"sentences": len(self), "cut": self.evaluation.cut, "calibration_sentences": list(self.calibrating)}


def inputs_of(model: Any, rows: Sequence[Row]) -> Inputs:
    """The inputs of rows. A model that gives vectors reads both texts of a row alone, every other one reads them together."""
    if model.task == "similarity":
        places = range(max((len(row.texts) for row in rows), default=0))
        texts: list[tuple[tuple[str, ...], int]] = [
            ((row.texts[place],), number) for place in places for number, row in enumerate(rows)
        ]
    else:
        texts = [(row.texts, number) for number, row in enumerate(rows)]
    tensors, cut = model.encode([text for text, _ in texts])
    return Inputs(tuple(tensors), tuple(number for _, number in texts), cut)


def random_inputs(model: Any, count: int, seed: int) -> list[Tensor]:
    """Texts of random tokens between the special tokens of an empty text. All tokens of the vocabulary are equally likely."""
    generator = torch.Generator().manual_seed(seed)
    (bare,), _ = model.encode([("",)])
    drawn = torch.randint(min(len(model.tokenizer), model.vocabulary), (count, RANDOM_TOKENS), generator=generator)
    middle = torch.zeros(count, bare.shape[0], RANDOM_TOKENS, dtype=torch.long)
    middle[:, 0] = drawn
    return [torch.cat([bare[:, :1], one, bare[:, 1:]], dim=1) for one in middle]


def targets_of(
    model: Any, rows: Sequence[Row], scored: bool, classes: Sequence[str], *, numbered: bool = False
) -> NDArray[Any] | None:
    """The scores of rows, or the numbers of their classes as the model counts them. None for a task that reads no target.

    Args:
        numbered: whether the order of the classes is the data set's own, as for `LabelledText`.

    Raises:
        UserError: the task needs what the rows do not have, or the model knows other classes.
    """
    place = f"data.columns: model.name={model.name} is for {model.task} and"
    has = "a score" if scored else "a label" if classes else "neither label nor score"
    if model.task == "fill_mask":
        return None
    if model.task == "similarity" and (not scored or len(rows[0].texts) < 2):
        other = ", or head=probe, which learns the classes" if classes else ""
        raise UserError(
            f"{place} needs two texts and a score, and rows have {has}; use {{text: ..., second: ..., score: ...}}{other}"
        )
    if model.task == "regression" and not scored:
        raise UserError(f"{place} needs a score, and rows have {has}; use {{text: ..., score: ...}}")
    if model.task in ("classification", "features") and not classes:
        raise UserError(f"{place} needs a label, and rows have {has}; use {{text: ..., label: ...}}")
    if scored:
        return np.array([row.target for row in rows], dtype=np.float64)
    if model.task == "features" and any(len(row.texts) > 1 for row in rows):
        raise UserError("data.columns.second: must be left out; a fitted head (head=probe, head=knn) reads the vector of one text")
    numbers = {name: at for at, name in enumerate(classes)} if model.task == "features" else _numbers(model, classes, numbered)
    return np.array([numbers[str(row.target)] for row in rows], dtype=np.int64)


def _numbers(model: Any, classes: Sequence[str], numbered: bool) -> dict[str, int]:
    """Class -> its number in the model: the word of its config.json, or the number itself."""
    config = model.module.config
    known = {str(word).lower(): int(number) for word, number in config.label2id.items()}
    if numbered and all(re.fullmatch(r"label_\d+", word) for word in known):  # transformers' own words, where training gave none
        known = {name.lower(): at for at, name in enumerate(classes)}
    numbers = {name: int(name) if name.isdecimal() else known.get(name.lower(), -1) for name in classes}
    if wrong := [name for name, number in numbers.items() if not 0 <= number < config.num_labels]:
        raise UserError(
            f"data.columns.label: {counted(wrong, 'classes')} that model.name={model.name} does not know; it has"
            f" {', '.join(config.label2id)}, or numbers from 0 to {config.num_labels - 1}"
        )
    return numbers
