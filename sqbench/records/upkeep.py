"""The contents of a results folder besides finished points of this version, and their removal."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.errors import UserError, known
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.storage.locks import held

Outdated = Callable[[Mapping[str, Any]], str | None]

LEFT_OVER = 3600.0  # seconds after which a half-written file has no writer any more


@dataclass(frozen=True)
class Remains:
    """A file or a folder that may be removed.

    Attributes:
        kind: a key of `KINDS`.
        path: the file, or a point's whole folder.
        why: the reason, in a few words.
    """

    kind: str
    path: Path
    why: str

    def size(self) -> int:
        """Bytes on disk."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def remove(self) -> None:
        """Delete it, unless a process has begun to compute the point since."""
        folder = self.path if self.path.is_dir() else self.path.parent
        if not held(folder / "claim.json"):
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink(missing_ok=True)


def remains(store: Store, kinds: Collection[str], outdated: Outdated) -> list[Remains]:
    """The remains of these kinds, by path. Points that a live process computes are left out.

    Args:
        outdated: identity -> what says that other code computed the point (`sqbench.running.identity.outdated`).

    Raises:
        UserError: an unknown kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"clean {kind}: {known(kind, KINDS)}")
    records = {record.point_id: record for record in store.records(brief=True)}
    found = []
    for folder in sorted(path for path in store.runs.iterdir() if path.is_dir() and not held(path / "claim.json")):
        found += [Remains(kind, *one) for kind in kinds for one in KINDS[kind](folder, records.get(folder.name), outdated)]
    return found


Found = Iterator[tuple[Path, str]]


def _failed(folder: Path, record: Record | None, outdated: Outdated) -> Found:
    if record is not None and not record.finished:
        yield folder, record.reason


def _old(folder: Path, record: Record | None, outdated: Outdated) -> Found:
    if record is not None and (why := outdated(record.identity)) is not None:
        yield folder, f"computed by {why}"


def _unfinished(folder: Path, record: Record | None, outdated: Outdated) -> Found:
    if not (folder / "record.json").is_file():
        began = "training goes on from its checkpoint" if (folder / "checkpoint.safetensors").is_file() else "it starts anew"
        yield folder, f"no record; when the point is run again, {began}"


def _damaged(folder: Path, record: Record | None, outdated: Outdated) -> Found:
    if record is None and (folder / "record.json").is_file():
        yield folder / "record.json", "its checksum does not match"
    for path in sorted(folder.glob("*.corrupt*")):
        yield path, "was set aside because it was damaged"


def _claims(folder: Path, record: Record | None, outdated: Outdated) -> Found:
    if (claim := folder / "claim.json").is_file():
        yield claim, "the process that held it is dead"
    for path in sorted(folder.glob(".*.part")):
        if time.time() - path.stat().st_mtime > LEFT_OVER:
            yield path, "was never written to its end"


KINDS: dict[str, Callable[[Path, Record | None, Outdated], Found]] = {
    "failed": _failed,
    "old": _old,
    "unfinished": _unfinished,
    "damaged": _damaged,
    "claims": _claims,
}
