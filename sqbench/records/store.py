"""The results folder: one folder a point, whose record is written once, atomically, and last."""

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd

from sqbench.errors import UserError
from sqbench.records.claims import claim
from sqbench.storage import CorruptFile, atomic_path, digest, set_aside, write_text

log = logging.getLogger(__name__)

SCHEMA = 1  # of record.json; raised when a reader would have to know


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

    def claim(self, point_id: str) -> AbstractContextManager[None]:
        """Hold a point while computing it; see `sqbench.records.claims.claim`."""
        return claim(self.folder(point_id) / "claim.json")


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
