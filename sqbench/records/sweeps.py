"""The points of a sweep. They are written when it starts, so that a reader can tell how far it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sqbench.records.store import Store
from sqbench.storage.files import write_text

_FILE = "points.json"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was when it started. A search is as it was when it chose its latest points.

    Attributes:
        name: the name of its folder in `results_dir/sweeps`, which is its start time.
        started: seconds since the epoch.
        points: the ids of all of its points.
        todo: the ids of those that it has to compute.
    """

    name: str
    started: float
    points: tuple[str, ...]
    todo: tuple[str, ...]


def begin(folder: Path, points: Sequence[str], store: Store, *, force: bool, now: float) -> Sweep:
    """Write down a sweep that starts in its own folder."""
    return extend(folder, Sweep(folder.name, now, (), ()), points, store, force=force)


def extend(folder: Path, sweep: Sweep, points: Sequence[str], store: Store, *, force: bool) -> Sweep:
    """Write down further points of a sweep. A search chooses its next points by the results of the last ones."""
    todo = tuple(point for point in points if force or not store.finished(point))
    longer = Sweep(sweep.name, sweep.started, (*sweep.points, *points), (*sweep.todo, *todo))
    write_text(folder / _FILE, json.dumps(asdict(longer)) + "\n")
    return longer


def latest(root: Path) -> Sweep | None:
    """The sweep of a results folder that started last. None if there was none."""
    found = []
    for path in root.glob(f"sweeps/*/{_FILE}"):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            found.append(Sweep(str(fields["name"]), float(fields["started"]), tuple(fields["points"]), tuple(fields["todo"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version; the progress of a sweep is no result
    return max(found, key=lambda sweep: sweep.started, default=None)
