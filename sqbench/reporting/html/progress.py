"""The progress of the latest sweep, from its list of points, the records since its start, and the claims held now."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqbench.records import sweeps
from sqbench.records.record import Record
from sqbench.storage.locks import held


@dataclass(frozen=True)
class Progress:
    """A sweep at a moment.

    Attributes:
        name: name of the sweep. It is empty, and all counts are 0, if only single points were ever run.
        skipped: the number of points that were finished before it started.
        done, failed: the number of points finished and failed since it started.
        left: the number of points without a record of this sweep.
        running: ids of points held by live processes, of this sweep or of any other run in this folder.
        seconds_left: estimate at the pace so far. None before the first point, or if nothing is left.
    """

    name: str
    total: int
    skipped: int
    done: int
    failed: int
    left: int
    running: tuple[str, ...]
    seconds_left: float | None

    @property
    def active(self) -> bool:
        return bool(self.running)

    @property
    def over(self) -> int:
        return self.total - self.left


def progress(folder: Path, records: Mapping[str, Record], now: float | None = None) -> Progress | None:
    """The progress of the latest sweep. None if the folder never had a sweep and nothing runs."""
    now = time.time() if now is None else now
    running = tuple(sorted(path.parent.name for path in folder.glob("runs/*/claim.json") if held(path)))
    sweep = sweeps.latest(folder)
    if sweep is None:
        return Progress("", 0, 0, 0, 0, 0, running, None) if running else None
    written = {point: mtime for point in sweep.todo if (mtime := _written(folder, point)) >= sweep.started and point in records}
    failed = sum(not records[point].finished for point in written)
    left = len(sweep.todo) - len(written)
    pace = (max(written.values()) - sweep.started) / len(written) if written else None
    remaining = None if pace is None or not left else max(0.0, pace * left - (now - max(written.values())))
    skipped = len(sweep.points) - len(sweep.todo)
    return Progress(sweep.name, len(sweep.points), skipped, len(written) - failed, failed, left, running, remaining)


def _written(folder: Path, point: str) -> float:
    """The time at which the record of a point was written. -1 if there is none."""
    try:
        return (folder / "runs" / point / "record.json").stat().st_mtime
    except OSError:
        return -1.0
