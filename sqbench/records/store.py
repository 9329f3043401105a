"""The results folder: one folder a point, whose record is written once, atomically, and last."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.errors import UserError
from sqbench.storage import CorruptFile, atomic_path, digest, set_aside, write_text

log = logging.getLogger(__name__)

SCHEMA = 1  # of record.json; raised when a reader would have to know
STALE = 600.0  # seconds without a heartbeat after which a claim from another host is taken over


class Busy(Exception):
    """Another process is computing this point."""


class Store:
    """Records under `results_dir/runs`."""

    def __init__(self, results_dir: str | Path) -> None:
        """Open, and create if needed.

        Raises:
            UserError: the folder cannot be written.
        """
        self.root = Path(results_dir).expanduser()
        self.runs = self.root / "runs"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.root / ".writable"):
                pass
            (self.root / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"results_dir={results_dir}: cannot be written ({error.strerror}); a folder of your own works"
            ) from error

    def folder(self, point_id: str) -> Path:
        return self.runs / point_id

    def read(self, point_id: str) -> dict[str, Any] | None:
        """A point's record; None if there is none. A damaged one is moved aside and counts as none."""
        path = self.folder(point_id) / "record.json"
        try:
            return _verified(path)
        except FileNotFoundError:
            return None
        except CorruptFile as reason:
            set_aside(path, reason)
            return None

    def finished(self, point_id: str) -> bool:
        """Whether a point has a whole record with status ok."""
        record = self.read(point_id)
        return record is not None and record["status"] == "ok"

    def write(self, record: dict[str, Any], samples: pd.DataFrame | None = None) -> Path:
        """Write a point's samples, then its record."""
        folder = self.folder(record["point_id"])
        if samples is not None:
            with atomic_path(folder / "samples.parquet") as part:
                samples.to_parquet(part, index=False)
        path = folder / "record.json"
        write_text(path, json.dumps({**record, "checksum": digest(record)}, indent=1, sort_keys=True, allow_nan=False) + "\n")
        return path

    def records(self) -> Iterator[dict[str, Any]]:
        """All whole records, by point id. Damaged ones are named and passed over, and stay where they are."""
        for path in sorted(self.runs.glob("*/record.json")):
            try:
                yield _verified(path)
            except CorruptFile as reason:
                log.warning("%s is damaged (%s): left out; running its point again replaces it", path, reason)

    @contextmanager
    def claim(self, point_id: str) -> Iterator[None]:
        """Hold a point while computing it, so that no other process does.

        Raises:
            Busy: a live process holds it. A claim of a dead process on this host is taken over at once, one of another host after
                ten minutes without a heartbeat.
        """
        path = self.folder(point_id) / "claim.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        for _ in range(2):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                if _alive(path):
                    raise Busy(f"held by {path.read_text(encoding='utf-8')}") from None
                path.unlink(missing_ok=True)
        else:
            raise Busy("another process took it over at the same moment")
        with os.fdopen(handle, "w") as file:
            json.dump(mine, file)
        done = threading.Event()
        threading.Thread(target=_beat, args=(path, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()
            path.unlink(missing_ok=True)


def _beat(claim: Path, done: threading.Event) -> None:
    """Touch a claim every minute until it is given back, for whoever looks from another host."""
    while not done.wait(STALE / 10):
        try:
            os.utime(claim)
        except OSError:
            return


def _verified(path: Path) -> dict[str, Any]:
    """A record whose checksum matches its content."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptFile("no JSON object")
    body = {key: value for key, value in record.items() if key != "checksum"}
    try:
        if record.get("checksum") != digest(body):
            raise CorruptFile("checksum does not match")
    except ValueError as error:  # NaN, which no record holds
        raise CorruptFile(str(error)) from error
    return record


def _alive(claim: Path) -> bool:
    """Whether the process that wrote a claim still works on it."""
    try:
        age = time.time() - claim.stat().st_mtime
        held = json.loads(claim.read_text(encoding="utf-8"))
        host, pid = held["host"], int(held["pid"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return age < 5.0  # being written this moment, or cut off by a crash
    if host != socket.gethostname():
        return age < STALE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
