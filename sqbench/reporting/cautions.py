"""Warnings at the end of a sweep: each appears once, for any number of points."""

from collections.abc import Iterable

from sqbench.comparison import main_metric, shortfall
from sqbench.records.record import Record


def cautions(records: Iterable[Record]) -> list[str]:
    """One sentence without its full stop if intervals hold less often than their level. It is about the worst point.

    Args:
        records: records of the points of a sweep, failed ones too.
    """
    deltas = [record.delta.get(main_metric(map(record.metric, record.metrics)).name, {}) for record in records if record.metrics]
    short = [delta for delta in deltas if delta.get("held") is not None]
    return [shortfall(min(short, key=lambda delta: int(delta["held"])))] if short else []
