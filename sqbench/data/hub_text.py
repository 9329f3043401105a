"""Labelled texts of a hub by name, such as the tasks of GLUE: one split evaluates, another one calibrates."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.base import DataSource, calibrated_on
from sqbench.data.hub import split_of
from sqbench.data.labelled_text import LabelledText, divided
from sqbench.data.text_tables import Columns, Row, row_of
from sqbench.errors import UserError, known
from sqbench.planning import Absent

KEY = "data.hub"


@dataclass(frozen=True)
class Place:
    """Where a data set is on the hub.

    Attributes:
        repository: its name on the hub.
        subset: its configuration. None if it has only one.
        test, train: names of its splits.
    """

    repository: str
    subset: str | None = None
    test: str = "validation"
    train: str = "train"

    @classmethod
    def of(cls, told: Any) -> "Place":
        """The place that `data.hub` names.

        Raises:
            UserError: a word is unknown, or the repository is missing.
        """
        words = [field.name for field in fields(cls)]
        if not isinstance(told, Mapping):
            raise UserError(f"{KEY}={told}: must be a mapping, for example {{repository: nyu-mll/glue, subset: sst2}}")
        for word, value in told.items():
            if word not in words:
                raise UserError(f"{KEY}.{word}: {known(str(word), words)}")
            if not isinstance(value, str) and not (word == "subset" and value is None):
                raise UserError(f"{KEY}.{word}={value}: must be a name")
        if "repository" not in told:
            raise UserError(f"{KEY}: must have a repository, for example {{repository: nyu-mll/glue, subset: sst2}}")
        return cls(**told)


@dataclass(frozen=True)
class AbsentText(LabelledText):
    """Texts that a plan does not download. Their name and the numbers that are asked for identify them."""

    sentences: int | None = None

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `LabelledText.identity`."""
        calibrated = calibrated_on("sentences", calibration, {"train": self.name})
        return {"sentences": self.sentences, "test": self.name}, calibrated

    def trained_on(self, count: int) -> str:
        """See `LabelledText.trained_on`."""
        return f"{self.name} {count}"


def fetch(cfg: DataConfig, calibration: CalibrationConfig) -> LabelledText:
    """Read both splits. In a plan, `AbsentText` stands for a data set that would be downloaded.

    `data.path` is a local copy of the repository.

    Raises:
        UserError: the data set, a split or a column is missing, or a row that evaluates lacks its text or its target.
    """
    place, columns = Place.of(cfg.hub), Columns.of(cfg.columns)
    if cfg.train_path is not None:
        raise UserError(f"data.train_path={cfg.train_path}: must be null; {KEY}.train names the split that calibrates")
    where = place.repository if cfg.path is None else str(Path(cfg.path).resolve())
    try:
        test, classes = _split(cfg.name, where, place.subset, place.test, columns)
        train, others = _split(cfg.name, where, place.subset, place.train, columns, whole=False)
    except Absent as absent:
        return AbsentText(cfg.name, (), (), columns.scored, (), False, first=str(absent), sentences=cfg.sentences)
    if classes != others:
        raise UserError(f"{KEY}: {place.test} has the classes {', '.join(classes)}, and {place.train} {', '.join(others)}")
    found = divided(cfg, test, train, scored=columns.scored, place=f"{place.test} of {cfg.name}")
    return replace(found, classes=classes, numbered=bool(classes))


@lru_cache(maxsize=4)
def _split(
    name: str, where: str, subset: str | None, split: str, columns: Columns, whole: bool = True
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of a split, and the names of its classes in the data set's own order. It is read once per process.

    Args:
        whole: whether a row without a text is an error. It is left out otherwise.
    """
    instead = f"one run with a network fills the cache; use data.path=FOLDER with a copy of {where}"
    found = split_of(where, subset, split, key=f"data={name}", instead=instead)
    if lacking := [column for column in columns.all if column not in found.column_names]:
        raise UserError(f"data.columns: {split} of {name} has no column {lacking[0]}; it has {', '.join(found.column_names)}")
    classes: tuple[str, ...] = ()
    if columns.target is not None and not columns.scored:
        classes = tuple(getattr(found.features[columns.target], "names", ()))
        if not classes:
            raise UserError(f"data.columns.label: {columns.target} of {name} does not name its classes; use a column that does")
    cells = zip(*(found[column] for column in columns.all), strict=True)
    rows = []
    for number, row in enumerate(cells):
        texts, target = row[: len(columns.texts)], row[len(columns.texts) :]
        if not whole and not all(isinstance(text, str) and text.strip() for text in texts):
            continue
        if classes:
            if not isinstance(target[0], int) or not 0 <= target[0] < len(classes):
                raise UserError(f"{KEY}: row {number} of {split} of {name} has no class ({target[0]}); use a split with labels")
            target = (classes[target[0]],)
        rows.append(row_of((*texts, *target), columns, f"row {number} of {split} of {name}"))
    return tuple(rows), classes


SOURCES = {"hub_text": DataSource("sentences", fetch, ("folder",))}
