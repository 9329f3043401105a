"""Streaming statistics of one tensor, taken batch by batch: what its collectors have seen."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from sqbench.errors import UserError
from sqbench.statistics import COLLECTORS, EVERYDAY, Batch, Collector, Gram, StoredGram
from sqbench.statistics.base import Columns
from sqbench.statistics.blocks import Blocks
from sqbench.statistics.extremes import Averages, Extremes
from sqbench.statistics.histogram import Bins
from sqbench.statistics.rows import Rows

C = TypeVar("C", bound=Collector)


class MissingStatistics(UserError):
    """Somebody reads a collector that was not collected, or one that a scale has made wrong."""


@dataclass
class InputStatistics:
    """Streaming statistics of one activation with C channels (its last axis). Memory is bounded for any number of tokens.

    The collectors' fields are properties here. `sqbench.statistics` describes them.

    Attributes:
        collectors: by name.
        site: the layer or point that reads the tensor.
        lost: collectors that a scale or a second tensor has made wrong. They must be collected again.

    Raises:
        MissingStatistics: on reading a field of a collector that is not there. The message names it and the site.
    """

    collectors: dict[str, Collector]
    site: str = "this tensor"
    lost: frozenset[str] = field(default=frozenset())

    @classmethod
    def empty(
        cls,
        channels: int,
        device: torch.device | str = "cpu",
        names: Iterable[str] = EVERYDAY,
        site: str = "this tensor",
    ) -> "InputStatistics":
        """Statistics before the first batch, by the collectors with these names."""
        return cls({name: cls_.empty(channels, device) for name, cls_ in COLLECTORS.items() if name in set(names)}, site)

    @torch.no_grad()
    def update(self, x: Tensor, keep_rows: int = 4, columns: Columns | None = None) -> None:
        """Add one batch [examples, ..., C].

        Args:
            columns: what the layer multiplies with its weight; None if these are the channels.

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        batch = Batch.of(x, keep_rows, columns)
        for collector in self.collectors.values():
            collector.update(batch)

    def has(self, *names: str) -> bool:
        """Whether all of these collectors can be read."""
        return set(names) <= self.collectors.keys()

    def _of(self, kind: type[C]) -> C:
        name = kind.name
        if name in self.lost:
            raise MissingStatistics(
                f"{self.site}: its {name} was collected before a scale moved or tensors were joined, and cannot follow;"
                " collect it again from the changed model"
            )
        if name not in self.collectors:
            raise MissingStatistics(f"{self.site}: its {name} was not collected; use calibrate(..., needs=[{name!r}, ...])")
        return self.collectors[name]  # type: ignore[return-value]

    @property
    def tokens(self) -> int:
        return self._of(Extremes).tokens

    @property
    def routed(self) -> int | None:
        """How many tokens are routed to the layer's expert, if they are too few to calibrate on. None for every other layer."""
        routed = self._of(Extremes).routed
        return None if routed < 0 else routed

    @property
    def batches(self) -> int:
        return self._of(Extremes).batches

    @property
    def low(self) -> Tensor:
        return self._of(Extremes).low

    @property
    def high(self) -> Tensor:
        return self._of(Extremes).high

    @property
    def sum(self) -> Tensor:
        return self._of(Extremes).sum

    @property
    def abs_sum(self) -> Tensor:
        return self._of(Extremes).abs_sum

    @property
    def batch_low(self) -> float:
        return self._of(Averages).batch_low

    @property
    def batch_high(self) -> float:
        return self._of(Averages).batch_high

    @property
    def ema_low(self) -> float:
        return self._of(Averages).ema_low

    @property
    def ema_high(self) -> float:
        return self._of(Averages).ema_high

    @property
    def bins(self) -> Tensor:
        return self._of(Bins).bins

    @property
    def reach(self) -> float:
        return self._of(Bins).reach

    @property
    def blocks(self) -> Tensor:
        return self._of(Blocks).blocks

    @property
    def gram(self) -> Gram:
        """The full matrix. A stored one is read from disk by each access."""
        return self._of(Gram).read()

    @property
    def rows(self) -> Tensor:
        return self._of(Rows).rows

    @property
    def top(self) -> Tensor:
        return self._of(Rows).top

    @property
    def examples(self) -> int:
        return self._of(Rows).examples

    @property
    def absmax(self) -> Tensor:
        """[C] largest |x| of every channel."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def abs_mean(self) -> Tensor:
        """[C] mean |x| of every channel."""
        return (self.abs_sum / max(self.tokens, 1)).float()

    def scaled(self, scale: Tensor) -> "InputStatistics":
        """Statistics of x / scale ([C], positive). What only the data can tell is `lost`, and an error to read."""
        return self._changed({name: one.scaled(scale) for name, one in self.collectors.items()})

    def joined(self, other: "InputStatistics") -> "InputStatistics":
        """Statistics of this tensor and another as if they were one. Both have the same channels and the same batches."""
        both = [name for name in self.collectors if name in other.collectors]
        result = self._changed({name: self.collectors[name].joined(other.collectors[name]) for name in both})
        return replace(result, lost=result.lost | other.lost)

    def _changed(self, collectors: dict[str, Collector | None]) -> "InputStatistics":
        kept = {name: one for name, one in collectors.items() if one is not None}
        return InputStatistics(kept, self.site, self.lost | (collectors.keys() - kept.keys()))

    def approximated(self) -> "InputStatistics":
        """The same with a substitute for what is lost, for pictures and the outlier report. No range of a result comes from it.

        The histogram is that of the sample rows. All batches are taken to have the global range.
        """
        found = dict(self.collectors)
        if "histogram" in self.lost:
            found["histogram"] = Bins.of_rows(self.rows, float(self.absmax.max()))
        if "averages" in self.lost:
            found["averages"] = Averages.of_range(self._of(Extremes))
        return InputStatistics(found, self.site)

    def renewed(self, other: "InputStatistics") -> "InputStatistics":
        """These statistics with collectors of another pass in place of what is lost."""
        return replace(self, collectors=self.collectors | other.collectors, lost=self.lost - other.collectors.keys())

    def extended(self, other: "InputStatistics") -> "InputStatistics":
        """These statistics and further collectors of the same tensor."""
        return replace(self, collectors=self.collectors | other.collectors)

    def tensors(self, names: Collection[str] = tuple(COLLECTORS)) -> dict[str, Tensor]:
        """All fields of the collectors with these names as tensors, for a file."""
        return {key: value for name, one in self.collectors.items() if name in names for key, value in one.tensors().items()}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], names: Iterable[str] = EVERYDAY, site: str = "this tensor"
    ) -> "InputStatistics":
        """The inverse of `tensors`."""
        return cls({name: COLLECTORS[name].from_tensors(tensors) for name in names}, site)


__all__ = ["InputStatistics", "MissingStatistics", "StoredGram"]
