"""Draws of labelled images, preprocessed for a model and read batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqbench.data.base import Batches
from sqbench.data.image_decoding import Decoder
from sqbench.data.image_splits import Split, draw
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError
from sqbench.storage.files import digest

CALIBRATION_BATCH = 8  # images; moving averages and means over batches depend on it


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a draw.

    Attributes:
        images: [B, channels, height, width] float32, normalised.
        labels: [B] int64.
        index: [B] int64, positions in the split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class LabelledImages:
    """One draw of a split, prepared for one model.

    Attributes:
        indices: [N] int64, positions in the split.
        labels: [N] int64.
    """

    def __init__(
        self,
        split: Split,
        indices: Sequence[int] | NDArray[np.int64] | Tensor,
        preprocessing: Preprocessing,
        decoder: Decoder | None = None,
    ) -> None:
        """Read nothing yet. Draws that share a decoder share its pixels."""
        self.split, self.preprocessing = split, preprocessing
        self.indices = torch.as_tensor(indices, dtype=torch.long)
        self.labels = torch.from_numpy(split.labels)[self.indices]
        self.decoder = decoder or Decoder(split, preprocessing)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the images' content, their labels and the preprocessing. It reads every image."""
        return digest([self.split.digest(self.indices.tolist()), self.preprocessing.fingerprint])

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason, for each image of this draw that could not be decoded so far."""
        corrupt = self.decoder.corrupt
        mine = set(self.indices.tolist()) & corrupt.keys() if corrupt else set()
        return {self.split.name(index): corrupt[index] for index in sorted(mine)}

    def batches(self, size: int, order: Sequence[int] | Tensor | None = None) -> Iterator[Batch]:
        """Batches of `size` images. A batch with corrupt images is smaller.

        Args:
            order: positions in this draw, for shuffled training. None keeps the order of the draw.

        Raises:
            UserError: there are no images, or none can be decoded.
        """
        assert size >= 1, size
        self._refuse_none()
        order = torch.arange(len(self)) if order is None else torch.as_tensor(order, dtype=torch.long)
        found = False
        try:
            for part in order.split(size) if len(order) else ():
                if (batch := self._batch(self.indices[part].tolist())) is not None:
                    found = True
                    yield batch
        finally:
            self.decoder.warn()
        if len(order) and not found:
            name, reason = next(iter(self.skipped.items()))
            raise UserError(f"{self.split.title}: none of {len(order)} images can be decoded, for example {name} ({reason})")

    def _batch(self, indices: Sequence[int]) -> Batch | None:
        pixels, good = self.decoder.pixels(indices)
        if not good:
            return None
        index = torch.tensor(good)
        return Batch(self.preprocessing.normalize(pixels), torch.from_numpy(self.split.labels)[index], index)

    def take(self, count: int, seed: int = 0) -> "LabelledImages":
        """`count` of these images, or all if there are fewer, in storage order.

        The draw depends on the seed alone. A larger count contains the images of a smaller one.

        Raises:
            UserError: there are no images.
        """
        self._refuse_none()
        chosen = self.indices[torch.from_numpy(draw(len(self), count, seed))].sort().values
        return LabelledImages(self.split, chosen, self.preprocessing, self.decoder)

    def inputs(self, count: int) -> Batches:
        """The images without labels, for calibration, in the order of their draw.

        Args:
            count: the number of images asked for. If there are no images at all, reading a batch raises UserError.
        """

        def make(number: int) -> Tensor | None:
            self._refuse_none()
            batch = self._batch(self.indices[number * CALIBRATION_BATCH :][:CALIBRATION_BATCH].tolist())
            if number == batches - 1:
                self.decoder.warn()
            return None if batch is None else batch.images

        batches = -(-count // CALIBRATION_BATCH)
        return Batches(batches, make, digest([self.fingerprint, count, CALIBRATION_BATCH]))

    def _refuse_none(self) -> None:
        if not len(self):
            raise UserError(
                f"data.images: all images of {self.split.title} evaluate, none is left to calibrate or train on;"
                " use a smaller data.images, or data.train_path=..."
            )
