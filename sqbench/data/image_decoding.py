"""Decode stored images to a model's pixels. Corrupt images are remembered and skipped. Pixels that fit in memory are kept."""

import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sqbench.data.image_splits import Split
from sqbench.data.preprocessing import Preprocessing

log = logging.getLogger(__name__)

BUDGET = 256 * 2**20  # bytes of decoded pixels kept for one split and model
NAMED = 3  # corrupt images that a warning names

CORRUPT = (OSError, ValueError, SyntaxError, EOFError)
# The errors that PIL's parsers raise for damaged bytes. A decompression bomb is an error from PIL's first limit on.
_BROKEN = (*CORRUPT, TypeError, LookupError, OverflowError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_KINDS = {"L": "grayscale", "P": "palette images", "RGB": "in colour"}


def decode(handle: BinaryIO) -> Image.Image:
    """A whole image with 8 bits a channel. An image of 16 bits a channel loses the lower 8.

    Raises:
        OSError, ValueError: the file is corrupt, truncated, not an image, too large, or has 32 bits a channel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern metadata, which nothing here reads
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(handle)
            image.load()
        except _BOMB as error:
            raise ValueError(str(error)) from error
        except OSError:
            raise
        except _BROKEN as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
    if image.mode.startswith("I;16"):  # PIL would clip them to 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits a channel (mode {image.mode}); use 8 or 16")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # the only way that PIL does not complain about
    return image


class Decoder:
    """The pixels of a split's images for one model.

    Attributes:
        corrupt: position -> reason, for each image that could not be decoded so far. These are not tried again.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, budget: int = BUDGET) -> None:
        """Keep up to `budget` bytes of pixels, those of the images asked for first."""
        self.split, self.preprocessing = split, preprocessing
        self.corrupt: dict[int, str] = {}
        room = min(len(split), budget // prod(preprocessing.input_size))
        self._kept = torch.from_numpy(np.empty((room, *preprocessing.input_size), np.uint8))  # takes memory when it is written
        self._slots: dict[int, int] = {}
        self._warned = 0

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Pixels, uint8 [K, channels, height, width], and their K indices. Indices that cannot be decoded are left out."""
        fresh: dict[int, Tensor] = {}
        for index in sorted(set(indices) - self._slots.keys() - self.corrupt.keys()):  # in storage order
            try:
                pixels = self._decoded(index)
            except CORRUPT as error:
                self.corrupt[index] = str(error) or type(error).__name__
                continue
            if len(self._slots) < len(self._kept):
                self._kept[len(self._slots)] = pixels
                self._slots[index] = len(self._slots)
            else:
                fresh[index] = pixels
        good = [index for index in indices if index not in self.corrupt]
        if not fresh:
            return self._kept[[self._slots[index] for index in good]], good
        return torch.stack([fresh[index] if index in fresh else self._kept[self._slots[index]] for index in good]), good

    def _decoded(self, index: int) -> Tensor:
        image, mode = self.split.load(index), self.preprocessing.mode
        width, height = image.size
        side = max(self.preprocessing.input_size[1:]) / self.preprocessing.crop_pct
        if side**2 * max(width, height) / min(width, height) > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise ValueError(f"{width} x {height} pixels are too narrow to resize")
        if image.mode != mode:
            _say_once(f"{self.split.title}: some images are {_KINDS.get(image.mode, image.mode)}: converted to {mode}")
        return self.preprocessing.pixels(image)

    def warn(self) -> None:
        """Log the images found corrupt since the last call."""
        new = list(self.corrupt.items())[self._warned :]
        self._warned = len(self.corrupt)
        if new:
            named = "; ".join(f"{self.split.name(index)} ({reason})" for index, reason in new[:NAMED])
            rest = f"; and {len(new) - NAMED} more" if len(new) > NAMED else ""
            log.warning("%s: skipped %d images that cannot be decoded: %s%s", self.split.title, len(new), named, rest)


@lru_cache(maxsize=1000)
def _say_once(text: str) -> None:
    """Log a line once per process. The two splits of a data set often have the same title."""
    log.info("%s", text)


@lru_cache(maxsize=2)  # the two splits of one data set
def shared_decoder(split: Split, preprocessing: Preprocessing) -> Decoder:
    """One decoder for all draws of a split, so that no image is decoded twice."""
    return Decoder(split, preprocessing)
