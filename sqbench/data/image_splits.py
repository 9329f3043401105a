"""Labelled images on disk or in memory, decoded on demand."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sqbench.errors import UserError
from sqbench.storage.files import digest

SAMPLE = 2000  # most images of a split that its fingerprint reads
EVALUATION_SEED = 0  # of the evaluation draw, so that every point of every sweep sees the same images


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, decoded on demand.

    Attributes:
        labels: [N] int64.
        load: position -> image. Raises OSError, ValueError or SyntaxError for a corrupt one.
        name: position -> name of the image for messages, for example a path, or a row and its file.
        digest: positions -> sha256 over the content (encoded bytes or pixels) and labels of these images, in the given order.
        title: the split's name for messages.
    """

    labels: NDArray[np.int64]
    load: Callable[[int], Image.Image]
    name: Callable[[int], str]
    digest: Callable[[Sequence[int]], str]
    title: str = "images"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all labels and of the content of at most 2,000 images, a fixed draw. ImageNet is too large to read whole."""
        return digest([self.labels.tolist(), self.digest(np.sort(draw(len(self), SAMPLE, EVALUATION_SEED)).tolist())])

    def select(self, at: NDArray[np.int64]) -> "Split":
        """The images at the given positions, as a split of their own."""
        return Split(
            self.labels[at],
            lambda index: self.load(int(at[index])),
            lambda index: self.name(int(at[index])),
            lambda indices: self.digest([int(at[index]) for index in indices]),
            self.title,
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The two splits that a source finds.

    Attributes:
        carved: whether both come from one set of images. `train` is then the part that `test` does not use.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    carved: bool = False


def sealed(labels: NDArray[np.int64], content: Callable[[int], str]) -> Callable[[Sequence[int]], str]:
    """A split's `digest`, made from the digest of each image's content. Images are read in storage order."""

    def digest_of(indices: Sequence[int]) -> str:
        contents = {index: content(index) for index in sorted({int(index) for index in indices})}
        return digest([[contents[int(index)], int(labels[index])] for index in indices])

    return digest_of


def in_memory(pixels: NDArray[np.uint8], labels: NDArray[np.int64], title: str) -> Split:
    """A split of uint8 pixels [N, H, W] (grayscale) or [N, H, W, 3]."""
    assert pixels.dtype == np.uint8, pixels.dtype
    assert len(pixels) == len(labels), (len(pixels), len(labels))

    def content(index: int) -> str:
        return hashlib.sha256(repr(pixels.shape[1:]).encode() + pixels[index].tobytes()).hexdigest()

    return Split(
        labels.astype(np.int64),
        lambda index: Image.fromarray(pixels[index]),
        lambda index: f"image {index} of {title}",
        sealed(labels, content),
        title,
    )


def draw(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of `total` positions, drawn without replacement. A smaller count is the beginning of a larger one."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].numpy()


@lru_cache(maxsize=2)
def carve(split: Split, images: int | None) -> tuple[Split, Split]:
    """The evaluation images, a fixed draw of `data.images`, and the other images, to calibrate and train on.

    Raises:
        UserError: there are fewer than `data.images` images.
    """
    total = len(split)
    if images is not None and images > total:
        raise UserError(
            f"data.images={images}: {split.title} has {total} images for evaluation and calibration; use fewer than {total}"
        )
    order = draw(total, total, EVALUATION_SEED)
    cut = total if images is None else images
    return split.select(np.sort(order[:cut])), split.select(np.sort(order[cut:]))


def stamp(path: Path) -> tuple[Path, int, int]:
    """Path, size and modification time of a file. They are the key of its cached content in this process."""
    state = path.stat()
    return path, state.st_size, state.st_mtime_ns
