"""Image data sets: a fixed draw of the test split evaluates, images of the training split calibrate and train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.base import Batches, DataSource, calibrated_on
from sqbench.data.image_batches import Batch, LabelledImages
from sqbench.data.image_decoding import shared_decoder
from sqbench.data.image_folders import image_folder, imagenet
from sqbench.data.image_sources import cifar, fashion_mnist, mnist5k
from sqbench.data.image_splits import EVALUATION_SEED, Split, Splits, draw, in_memory
from sqbench.data.image_tables import parquet
from sqbench.data.synthetic import noise
from sqbench.errors import UserError
from sqbench.planning import Absent

__all__ = ["SOURCES", "Batch", "ImageCorpus", "ImageExamples", "LabelledImages", "Split", "draw"]


@dataclass(frozen=True, eq=False)
class ImageExamples:
    """Images made for one model.

    Attributes:
        evaluation: the fixed draw of the test split.
        calibration: normalised images [B, channels, height, width], in the order they were drawn in; or noise.
        training: the whole training split, of which calibration is a part; it may be empty.
        calibration_images: positions in the training split; none where noise calibrates.
    """

    evaluation: LabelledImages
    calibration: Batches
    training: LabelledImages
    classes: tuple[str, ...]
    calibration_images: tuple[int, ...]

    def fingerprint(self) -> str:
        """sha256 of the evaluation images, their labels and preprocessing."""
        return self.evaluation.fingerprint

    def about(self) -> dict[str, Any]:
        """How many were drawn to evaluate on, which to calibrate, and which of those that this process read were skipped."""
        return {
            "images": len(self.evaluation),
            "skipped": {**self.training.skipped, **self.evaluation.skipped},
            "calibration_images": list(self.calibration_images),
        }


@dataclass(frozen=True, eq=False)
class ImageCorpus:
    """Two splits that share no image.

    Attributes:
        carved: the training split is what evaluation leaves of one set of images.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    carved: bool = False
    kind: str = "images"
    first: str = ""

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content and labels of the images that evaluate and of those that calibrate."""
        test, train = self._evaluating(data), self._calibrating(calibration)
        return (
            {"images": len(test), "test": self.test.digest(test.tolist())},
            calibrated_on("images", calibration, {"train": self.train.digest(train.tolist())}),
        )

    def fingerprints(self) -> dict[str, str]:
        """sha256 of both splits: see `Split.fingerprint`."""
        return {"test": self.test.fingerprint, "train": self.train.fingerprint}

    def trained_on(self, images: int | None = None, seed: int = 0) -> str:
        """sha256 of the content and labels of what `examples(...).training.take(images, seed)` takes, or of all that is there."""
        total = len(self.train)
        return self.train.digest(np.sort(draw(total, total if images is None else images, seed)).tolist())

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> ImageExamples:
        """Images for a model's input; none is decoded yet.

        Raises:
            UserError: more images are asked for than there are.
        """
        test, train = self._evaluating(data), self._calibrating(calibration)
        preprocessing = model.preprocessing
        testing, training = shared_decoder(self.test, preprocessing), shared_decoder(self.train, preprocessing)
        drawn = LabelledImages(self.train, train, preprocessing, training)
        return ImageExamples(
            LabelledImages(self.test, test, preprocessing, testing),
            drawn.inputs(calibration.images) if calibration.source == "data" else noise(preprocessing, calibration),
            LabelledImages(self.train, np.arange(len(self.train)), preprocessing, training),
            self.classes,
            tuple(train.tolist()),
        )

    def _evaluating(self, data: DataConfig) -> NDArray[np.int64]:
        total = len(self.test)
        if data.images is not None and data.images > total:
            raise UserError(f"data.images={data.images}: the test split of {self.name} has {total} images; use at most {total}")
        return np.sort(draw(total, total if data.images is None else data.images, EVALUATION_SEED))

    def _calibrating(self, calibration: CalibrationConfig) -> NDArray[np.int64]:
        if calibration.source != "data":
            return np.empty(0, dtype=np.int64)
        total, asked = len(self.train), calibration.images
        if total and asked > total:  # none at all is an error for those who read them: the float model does not
            left = f"{len(self.test)} of {total + len(self.test)} images evaluate, {total} are left; "
            works = "use fewer calibration.images or data.images, or data.train_path=..."
            there = f"the training split of {self.name} has {total} images; use at most {total}"
            raise UserError(f"calibration.images={asked}: " + (left + works if self.carved else there))
        return draw(total, asked, calibration.seed)


@dataclass(frozen=True, eq=False)
class AbsentImages(ImageCorpus):
    """A data set that would be downloaded, in a plan: known by its name and by how many images are asked for."""

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"images": data.images, "test": self.name}, calibrated_on("images", calibration, {"train": self.name})

    def trained_on(self, images: int | None = None, seed: int = 0) -> str:
        return f"{self.name} {images} {seed}"


FINDERS: dict[str, tuple[Callable[[DataConfig], Splits], Sequence[str]]] = {  # and what data.path may be
    "mnist5k": (mnist5k, ()),
    "cifar10": (cifar, ("folder",)),
    "cifar100": (cifar, ("folder",)),
    "fashion_mnist": (fashion_mnist, ("folder",)),
    "imagenet": (imagenet, ("folder",)),
    "image_folder": (image_folder, ("folder",)),
    "parquet": (parquet, ("file", "folder")),
}


def fetch(cfg: DataConfig, calibration: CalibrationConfig) -> ImageCorpus:
    """Find a data set's images and read their labels.

    In a plan, one that would be downloaded is known by its name.

    Raises:
        UserError: it is not there, or not laid out as it should be.
    """
    find, _ = FINDERS[cfg.source]
    try:
        found = find(cfg)
    except Absent as absent:
        none = in_memory(np.empty((0, 1, 1), np.uint8), np.empty(0, np.int64), cfg.name)
        return AbsentImages(cfg.name, (), none, none, first=str(absent))
    return ImageCorpus(cfg.name, found.classes, found.train, found.test, found.carved)


SOURCES = {name: DataSource("images", fetch, takes) for name, (_, takes) in FINDERS.items()}
