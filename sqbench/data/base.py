"""The interfaces of every data set. A data set is found and fingerprinted first, and made into model inputs later."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sqbench.config import CalibrationConfig, DataConfig

CALIBRATES = ("data", "random", "weights")  # the values of calibration.source


@dataclass(frozen=True)
class Batches:
    """Model inputs, made on demand and not kept.

    Attributes:
        count: the number of batches.
        make: number from 0 to count - 1 -> batch, with the examples on its first axis. None if all its examples are corrupt.
        fingerprint: sha256 of everything that decides the content.
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
    """Model inputs that only a search may replay. Statistics come from the weights alone.

    Attributes:
        examples: the number of examples that the statistics stand for.
        seed: the seed of the random rows that the statistics are made of.
    """

    examples: int = 0
    seed: int = 0


def commonest_first(lengths: Sequence[int]) -> list[int]:
    """The places of inputs in an order in which those of the commonest length come first: a search replays them in one batch."""
    times = Counter(lengths)
    return sorted(range(len(lengths)), key=lambda at: (-times[lengths[at]], lengths[at], at))


def calibrated_on(size: str, calibration: CalibrationConfig, content: dict[str, str]) -> dict[str, Any]:
    """The properties of the calibration that can change a number.

    Args:
        size: `windows`, `sentences` or `images`.
        content: fingerprints of the calibration data. They count only if the source is `data`.
    """
    return {
        size: getattr(calibration, size),
        "seed": calibration.seed,
        f"search_{size}": getattr(calibration, f"search_{size}"),
        **(content if calibration.source == "data" else {"source": calibration.source}),
    }


class Examples(Protocol):
    """The inputs of one sweep, made for one model.

    Attributes:
        calibration: model inputs that evaluation never sees. A tensor stands for batches of one example.
    """

    @property
    def calibration(self) -> Tensor | Batches: ...

    def inputs(self) -> Iterator[Tensor]:
        """The evaluation inputs in small batches, as the model reads them."""
        ...

    def fingerprint(self) -> str:
        """sha256 of the evaluation inputs, as the model reads them."""
        ...

    def about(self) -> dict[str, Any]:
        """The facts about these examples for the record."""
        ...


class Corpus(Protocol):
    """A data set, found and fingerprinted. Nothing is tokenised or decoded yet."""

    @property
    def first(self) -> str:
        """The step that a plan must name before the data set is available. Empty if it is available."""
        ...

    @property
    def kind(self) -> str:
        """`text`, `sentences` or `images`."""
        ...

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The properties of the evaluation data, and those of the calibration data, that can change a number."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """sha256 by name, for the record's provenance."""
        ...

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> Examples:
        """Inputs for a model of the same kind."""
        ...


@dataclass(frozen=True)
class DataSource:
    """A source of data.

    Attributes:
        kind: `text`, `sentences` or `images`.
        fetch: finds the data set.
        takes: the kinds of path that `data.path` may be: `file`, `folder`. Empty if it may not be set.
    """

    kind: str
    fetch: Callable[[DataConfig, CalibrationConfig], Corpus]
    takes: Sequence[str] = ("file",)
