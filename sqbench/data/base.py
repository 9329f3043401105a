"""What every data set is to the rest of sqbench: found and fingerprinted first, made into model inputs later."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sqbench.config import CalibrationConfig, DataConfig

CALIBRATES = ("data", "random", "weights")  # what calibration.source may be


@dataclass(frozen=True)
class Batches:
    """Model inputs, made when they are asked for and not kept.

    Attributes:
        count: how many batches.
        make: the batch of a number from 0 to count - 1, its first axis the examples; None if every example in it was corrupt.
        fingerprint: sha256 of what decides their content.
    """

    count: int
    make: Callable[[int], Tensor | None]
    fingerprint: str

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.count):
            if (batch := self.make(number)) is not None:
                yield batch


@dataclass(frozen=True)
class Unseen(Batches):
    """Model inputs that a search may replay and that nothing else sees: statistics come from the weights alone.

    Attributes:
        examples, seed: how many the statistics stand for, and of their draw.
    """

    examples: int = 0
    seed: int = 0


def calibrated_on(size: str, calibration: CalibrationConfig, content: dict[str, str]) -> dict[str, Any]:
    """What of the calibration can change a number.

    Args:
        size: `windows` or `images`.
        content: fingerprints of the data that is read, where it is read.
    """
    return {
        size: getattr(calibration, size),
        "seed": calibration.seed,
        f"search_{size}": getattr(calibration, f"search_{size}"),
        **(content if calibration.source == "data" else {"source": calibration.source}),
    }


class Examples(Protocol):
    """What one sweep computes on, made for one model.

    Attributes:
        calibration: model inputs that evaluation never sees; a tensor counts as batches of one example.
    """

    @property
    def calibration(self) -> Tensor | Batches: ...

    def fingerprint(self) -> str:
        """sha256 of the evaluation inputs, as the model sees them."""
        ...

    def about(self) -> dict[str, Any]:
        """What a record should say of them."""
        ...


class Corpus(Protocol):
    """A data set found and fingerprinted; nothing is tokenised or decoded yet."""

    @property
    def first(self) -> str:
        """What has to happen before it is there, in a plan; empty if it is there."""
        ...

    @property
    def kind(self) -> str:
        """text or images."""
        ...

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """What of the evaluation data and of the calibration data can change a number."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """sha256 by name, for the record's provenance."""
        ...

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> Examples:
        """Inputs for a model of the same kind."""
        ...


@dataclass(frozen=True)
class DataSource:
    """Where data comes from.

    Attributes:
        kind: text or images.
        fetch: finds it.
        takes: what `data.path` may be: `file`, `folder`.
    """

    kind: str
    fetch: Callable[[DataConfig, CalibrationConfig], Corpus]
    takes: Sequence[str] = ("file",)
