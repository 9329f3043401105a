"""Statistics of tensors: one small collector for each idea. `needs` names those that somebody reads."""

from collections.abc import Iterable

from sqbench.errors import UserError, known
from sqbench.statistics.base import Batch, Collector
from sqbench.statistics.blocks import Blocks
from sqbench.statistics.extremes import Averages, Extremes
from sqbench.statistics.gram import Gram, StoredGram
from sqbench.statistics.histogram import Bins
from sqbench.statistics.rows import Rows

COLLECTORS: dict[str, type[Collector]] = {cls.name: cls for cls in (Extremes, Averages, Rows, Bins, Blocks, Gram)}
ALWAYS = frozenset({"extremes", "averages", "rows"})  # cheap, and read by every method or by every report
EVERYDAY = frozenset(COLLECTORS) - {"gram"}  # what a notebook gets unasked. A full matrix is large and takes long.
OF_POINTS = ALWAYS | {"histogram"}  # of tensors that no layer reads: they are multiplied with no weight
LOST = frozenset(name for name, cls in COLLECTORS.items() if not cls.follows)  # when a scale moves: collected again from the data

__all__ = ["ALWAYS", "COLLECTORS", "EVERYDAY", "LOST", "OF_POINTS", "Batch", "Collector", "Gram", "StoredGram", "complete"]


def complete(needs: Iterable[str] | None) -> frozenset[str]:
    """The names of all collectors that run for these needs. None is everything except `gram`.

    Raises:
        UserError: no collector has such a name.
    """
    if needs is None:
        return EVERYDAY
    asked = frozenset({needs} if isinstance(needs, str) else needs)
    if other := sorted(asked - COLLECTORS.keys()):
        raise UserError(f"needs={other[0]}: {known(other[0], COLLECTORS)}")
    return ALWAYS | asked
