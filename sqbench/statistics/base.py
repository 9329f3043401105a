"""What a collector is, and the batch that all collectors of a tensor share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

Columns = Callable[[], Iterable[Tensor]]  # parts of what a layer multiplies with its weight, each [groups, rows, columns] float32


@dataclass(frozen=True)
class Batch:
    """One batch of a tensor with C channels (its last axis), in the forms that several collectors read.

    Attributes:
        rows: [N, C] float32, all tokens or pixels.
        lows, highs: [examples, C] the smallest and the largest value of every channel.
        low, high: the smallest and the largest value.
        keep_rows: how many rows to keep as a sample.
        columns: what the layer multiplies with its weight. For a linear layer these are the rows.
    """

    rows: Tensor
    lows: Tensor
    highs: Tensor
    low: float
    high: float
    keep_rows: int
    columns: Columns

    @classmethod
    def of(cls, x: Tensor, keep_rows: int, columns: Columns | None = None) -> "Batch":
        """A batch from a tensor [examples, ..., C].

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        by_example = x.reshape(len(x), -1, x.shape[-1]).float()
        lows, highs = by_example.amin(1), by_example.amax(1)
        rows = by_example.flatten(0, 1)
        low, high = float(lows.min()), float(highs.max())
        if not max(-low, high) < float("inf"):  # also false for NaN, which amin and amax pass on
            raise FloatingPointError("NaN or infinity")
        return cls(rows, lows, highs, low, high, keep_rows, columns or (lambda: [rows.unsqueeze(0)]))


class Collector(ABC):
    """Streaming statistics of one tensor: a dataclass of tensors and numbers, all of which go to a file.

    Attributes:
        name: by which `needs` asks for it.
        follows: whether `scaled` is exact. Otherwise only the data can tell, and `scaled` is None.
    """

    name: ClassVar[str]
    follows: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> Self:
        """The state before the first batch."""

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add one batch."""

    @abstractmethod
    def scaled(self, scale: Tensor) -> Self | None:
        """What it would have collected from x / scale ([C], positive). None if only the data can tell: collect it again."""

    @abstractmethod
    def joined(self, other: Self) -> Self | None:
        """What it would have collected from this tensor and another as if they were one. None if only the data can tell.

        Both have the same channels and the same batches.
        """

    def tensors(self) -> dict[str, Tensor]:
        """All fields as tensors, for a file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for name, value in values.items()
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`. A field with a default may be missing, because files of earlier versions lack it."""
        values: dict[str, Any] = {f.name: tensors[f.name] for f in fields(cls) if f.name in tensors or f.default is MISSING}  # type: ignore[arg-type]
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in values and field.type in (int, float):
                values[field.name] = field.type(values[field.name].item())
        return cls(**values)
