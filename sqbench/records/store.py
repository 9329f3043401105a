"""The results folder. It has one folder per point, whose record is written once, atomically, and last."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqbench.console.overrides import pasted
from sqbench.errors import UserError
from sqbench.records.record import Record, UnknownSchema
from sqbench.storage.files import CorruptFile, atomic_path, canonical_json, digest, file_digest, set_aside, write_text, written
from sqbench.storage.locks import claim

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SAMPLES = "samples.parquet"  # the per-example outcomes of a point
PATIENCE = 2.0  # seconds; a child ends within them after its killed parent, whose point a launcher gives to another at once
_BULK = b'"quantized":'  # the line with nearly all bytes of a record: the effect of quantization on every layer


def refuse_collection(results_dir: str, command: str) -> None:
    """Raise UserError for a folder that has no records itself but contains results folders. The message has the lines to type."""
    root = Path(results_dir).expanduser()
    if (root / "runs").is_dir():
        return
    inside = sorted({path.parents[2] for depth in ("*", "*/*") for path in root.glob(f"{depth}/runs/*/record.json")})
    if inside:
        lines = [f"python -m sqbench.{command} {pasted('results_dir', folder)}" for folder in inside]
        raise UserError(f"results_dir={results_dir}: is no results folder, and holds {len(inside)}:\n" + "\n".join(lines))


class Store:
    """Records under `results_dir/runs`. The folder need not exist for reading."""

    def __init__(self, results_dir: str | Path) -> None:
        self.root = Path(results_dir).expanduser()
        self.runs = self.root / "runs"

    def prepare(self) -> None:
        """Create the folder if needed, and check that it can be written, before anything is computed.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.root / ".writable"):
                pass
            (self.root / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"results_dir={self.root}: cannot be written ({error.strerror}); use a folder of your own") from error

    def folder(self, point_id: str) -> Path:
        return self.runs / point_id

    def read(self, point_id: str, *, brief: bool = False) -> Record | None:
        """A point's record, None if there is none. A `brief` one lacks `quantized`.

        A damaged record is moved aside and counts as none.

        Raises:
            UnknownSchema: the record is of another version of sqbench.
        """
        path = self.folder(point_id) / "record.json"
        try:
            return _verified(path, brief)
        except FileNotFoundError:
            return None
        except CorruptFile as reason:
            _move(path, reason)
            return None

    def finished(self, point_id: str) -> bool:
        """Whether a point has a whole record with status ok, and the samples that belong to it. Damaged files are moved aside."""
        record = self.read(point_id, brief=True)
        if record is None or not record.finished:
            return False
        path = self.folder(point_id) / SAMPLES
        try:
            if _samples_of(record, path):
                return True
            _move(path, "not what its record was computed from")
        except FileNotFoundError:
            pass
        return False

    def written(self, point_id: str) -> int | None:
        """When a point's record was written. See `sqbench.storage.files.written`."""
        return written(self.folder(point_id) / "record.json")

    def write(self, record: Record, samples: "pd.DataFrame | None" = None) -> Path:
        """Write a point's samples, then its record. The record holds the samples' checksum, because parquet has none."""
        folder = self.folder(record.point_id)
        if samples is not None:
            with atomic_path(folder / SAMPLES) as part:
                samples.to_parquet(part, index=False)
                record = replace(record, samples=file_digest(part))
        path, content = folder / "record.json", record.to_json()
        write_text(path, _text({**content, "checksum": digest(content)}))
        return path

    def records(
        self,
        point_ids: Collection[str] | None = None,
        *,
        brief: bool = False,
        refused: Callable[[UnknownSchema], None] | None = None,
    ) -> Iterator[Record]:
        """All whole records, or those of some points, by point id. Damaged ones are logged, skipped, and left where they are.

        Args:
            brief: leave out `quantized`, which tables do not need. That takes a twentieth of the time and memory.
            refused: gets the error of each record of another version of sqbench, which is then left out.

        Raises:
            UnknownSchema: a record is of another version of sqbench, and there is no `refused`.
        """
        for path in sorted(self.runs.glob("*/record.json")):
            if point_ids is not None and path.parent.name not in point_ids:
                continue
            try:
                yield _verified(path, brief)
            except UnknownSchema as reason:
                if refused is None:
                    raise
                refused(reason)
            except CorruptFile as reason:
                log.warning("%s is damaged (%s): left out; running its point again replaces it", path, reason)

    def samples(self, point_id: str, columns: Sequence[str] | None = None) -> "pd.DataFrame | None":
        """Some or all columns of a point's per-example outcomes. None where they are missing or damaged."""
        path, record = self.folder(point_id) / SAMPLES, self.read(point_id, brief=True)
        try:
            if record is None or not _samples_of(record, path):
                return None
            import pandas as pd

            return pd.read_parquet(path, columns=columns if columns is None else list(columns))
        except (OSError, ValueError):  # no file; no parquet, or without these columns
            return None

    def claim(self, point_id: str) -> AbstractContextManager[None]:
        """Hold a point while computing it. See `sqbench.storage.locks.claim`."""
        return claim(self.folder(point_id) / "claim.json", patience=PATIENCE)


def _move(path: Path, reason: object) -> None:
    """Set a damaged file aside. It stays where nothing can be moved, because such a folder may still be read."""
    try:
        set_aside(path, reason)
    except OSError as error:
        log.warning("%s is damaged (%s), and cannot be moved aside (%s)", path, reason, error.strerror)


def _samples_of(record: Record, path: Path) -> bool:
    """Whether a file holds the samples of a record. A record of an earlier version has no checksum, and any file will do."""
    return record.samples is None or record.samples == file_digest(path)


def _text(record: dict[str, Any]) -> str:
    """JSON with one member per line. The joined lines are the record's canonical JSON, so its bytes can be checked unparsed."""
    return "{\n" + ",\n".join(f"{canonical_json(key)}:{canonical_json(record[key])}" for key in sorted(record)) + "\n}\n"


def _verified(path: Path, brief: bool) -> Record:
    """A record whose checksum matches its content. A brief one lacks its bulk.

    Raises:
        UnknownSchema: the record is of another version of sqbench.
        CorruptFile: the checksum does not match, or the file is no record.
        FileNotFoundError: there is no record.
    """
    raw = path.read_bytes()
    lines = raw.split(b"\n")
    body = b"".join(line for line in lines if not line.startswith(b'"checksum":'))
    sealed = b'"checksum":"%b",' % hashlib.sha256(body).hexdigest().encode() in lines
    try:
        if sealed:  # neither line is the last, which has no comma, because every record has a `status`
            return Record.from_json(
                json.loads(b"".join(line for line in lines if not line.startswith(_BULK)) if brief else raw), brief=brief
            )
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptFile("no JSON object")
    try:  # a record in any other layout, of an earlier version or of another writer
        if record.get("checksum") != digest({key: value for key, value in record.items() if key != "checksum"}):
            raise CorruptFile("checksum does not match")
    except ValueError as error:  # NaN, which no record holds
        raise CorruptFile(str(error)) from error
    return Record.from_json(record, brief=brief)
