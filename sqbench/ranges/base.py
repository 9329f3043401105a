"""The interface of ranges: the clipping range of an input, from its statistics, and those of the blocks of a weight."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.formats.scheme import Scheme
from sqbench.parts.part import Part, Registry
from sqbench.ranges import estimators
from sqbench.statistics.inputs import InputStatistics


def with_static_inputs(scheme: Scheme, *names: str) -> frozenset[str]:
    """The collectors that a static range of inputs needs. Nothing for a scheme without such ranges."""
    static = scheme.activations is not None and not scheme.activations.dynamic
    return frozenset(names) if static else frozenset()


@dataclass(frozen=True)
class Ranges(Part):
    """Which clipping range does a tensor get? Min-max, unless a subclass says otherwise.

    Attributes:
        reads: names of the collectors that a static range of an input is made from, besides `extremes`.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, *self.reads)

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        """The clipping range (lo, hi) of an input with a static per-tensor format, 0-dim each."""
        return estimators.minmax(stats, fmt)

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> Limits | None:
        """Clipping ranges over the blocks of a weight [out, in]. None takes each block's own minimum and maximum."""
        return None


RANGES: Registry[Ranges] = Registry("ranges")
