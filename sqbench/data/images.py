"""Image data sets. Evaluation uses a fixed draw of the test split. Calibration and training use the training split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.base import Batches, DataSource, calibrated_on
from sqbench.data.image_batches import Batch, LabelledImages
from sqbench.data.image_decoding import shared_decoder
from sqbench.data.image_lists import image_folder, imagenet
from sqbench.data.image_sources import cifar, fashion_mnist, mnist5k
from sqbench.data.image_splits import EVALUATION_SEED, Split, Splits, draw, in_memory
from sqbench.data.image_tables import parquet
from sqbench.data.synthetic import noise
from sqbench.data.transforms import Transform
from sqbench.errors import UserError
from sqbench.planning import Absent

__all__ = ["SOURCES", "Batch", "ImageCorpus", "ImageExamples", "LabelledImages", "Split", "draw"]

FEW = 32  # images at once, for those who look at inputs


@dataclass(frozen=True, eq=False)
class ImageExamples:
    """Images made for one model.

    Attributes:
        evaluation: the fixed draw of the test split.
        calibration: normalised images [B, channels, height, width] in the order of their draw, or noise.
        training: the whole training split, including the calibration images. It may be empty.
        calibration_images: positions of the calibration images in the training split. Empty if noise calibrates.
    """

    evaluation: LabelledImages
    calibration: Batches
    training: LabelledImages
    classes: tuple[str, ...]
    calibration_images: tuple[int, ...]

    def inputs(self) -> Iterator[Tensor]:
        """The evaluation images, a few at a time."""
        return (batch.images for batch in self.evaluation.batches(FEW))

    def fingerprint(self) -> str:
        """sha256 of the evaluation images, their labels and their preprocessing."""
        return self.evaluation.fingerprint

    def about(self) -> dict[str, Any]:
        """The number of evaluation images, their preprocessing, the skipped images, and the positions of the calibration images."""
        return {
            "images": len(self.evaluation),
            "preprocessing": asdict(self.evaluation.preprocessing),
            "skipped": {**self.training.skipped, **self.evaluation.skipped},
            "calibration_images": list(self.calibration_images),
        }


@dataclass(frozen=True, eq=False)
class ImageCorpus:
    """Two splits that share no image.

    Attributes:
        carved: whether both splits come from one set of images. The training split is then the part that evaluation does not use.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    carved: bool = False
    kind: str = "images"
    first: str = ""

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content and labels of the evaluation images, and those of the calibration images."""
        test, train = self._evaluating(data), self._calibrating(calibration)
        return (
            {"images": len(test), "test": self.test.digest(test.tolist()), **_transformed(data)},
            calibrated_on("images", calibration, {"train": self.train.digest(train.tolist())}),
        )

    def fingerprints(self) -> dict[str, str]:
        """sha256 of both splits, see `Split.fingerprint`."""
        return {"test": self.test.fingerprint, "train": self.train.fingerprint}

    def trained_on(self, images: int | None = None, seed: int = 0) -> str:
        """sha256 of the content and labels of `examples(...).training.take(images, seed)`, or of all images if `images` is None."""
        total = len(self.train)
        return self.train.digest(np.sort(draw(total, total if images is None else images, seed)).tolist())

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> ImageExamples:
        """Images for a model's input. None is decoded yet.

        Raises:
            UserError: a split has fewer images than are asked for.
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
        if total and asked > total:  # an empty split is an error only when it is read; the float model does not read it
            left = f"{len(self.test)} of {total + len(self.test)} images evaluate, {total} are left; "
            works = "use fewer calibration.images or data.images, or data.train_path=..."
            there = f"the training split of {self.name} has {total} images; use at most {total}"
            raise UserError(f"calibration.images={asked}: " + (left + works if self.carved else there))
        return draw(total, asked, calibration.seed)


@dataclass(frozen=True, eq=False)
class AbsentImages(ImageCorpus):
    """A data set that a plan does not download. Its name and the number of images asked for identify it."""

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        evaluated = {"images": data.images, "test": self.name, **_transformed(data)}
        return evaluated, calibrated_on("images", calibration, {"train": self.name})

    def trained_on(self, images: int | None = None, seed: int = 0) -> str:
        return f"{self.name} {images} {seed}"


def _transformed(data: DataConfig) -> dict[str, Any]:
    """The changes of the models' own preprocessing, for the identity. Empty if there are none."""
    changes = Transform.of(data.transform).about()
    return {"transform": changes} if changes else {}


FINDERS: dict[str, tuple[Callable[[DataConfig], Splits], Sequence[str]]] = {  # name -> finder, kinds of data.path
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

    In a plan, `AbsentImages` stands for a data set that would be downloaded.

    Raises:
        UserError: the data set is missing, or its files have another layout.
    """
    find, _ = FINDERS[cfg.source]
    try:
        found = find(cfg)
    except Absent as absent:
        none = in_memory(np.empty((0, 1, 1), np.uint8), np.empty(0, np.int64), cfg.name)
        return AbsentImages(cfg.name, (), none, none, first=str(absent))
    return ImageCorpus(cfg.name, found.classes, found.train, found.test, found.carved)


SOURCES = {name: DataSource("images", fetch, takes) for name, (_, takes) in FINDERS.items()}
