"""Files that are either complete or absent: atomic writes, canonical JSON, digests.

Everything that sqbench stores on disk (records, calibration statistics, baselines, converted models) goes through here. A file that
fails its check is moved aside. It is never deleted and never used.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqbench.faults import fault

log = logging.getLogger(__name__)

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


class CorruptFile(Exception):
    """A file whose content does not match its own checksum or format."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        fault(f"before {path.name}")
        with part.open("rb+") as written:  # before the rename: a power cut must not leave an empty file under the real name
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(path)
        fault(f"after {path.name}")
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def canonical_json(value: Any) -> str:
    """The canonical JSON text of a value: sorted keys and no spaces. NaN and infinity are refused."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """`file_digest`, computed once per process while the file does not change."""
    state = path.stat()
    return _digest_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**21)  # enough for the files of an ImageNet
def _digest_of(path: Path, size: int, modified: int) -> str:
    return file_digest(path)


def written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if it is absent. Compare two for equality only, as clocks may be set."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def cache_dir() -> Path:
    """The folder of converted and trained models: $SQBENCH_CACHE, else ~/.cache/sqbench."""
    return Path(os.environ.get("SQBENCH_CACHE") or Path.home() / ".cache" / "sqbench")


def set_aside(path: Path, reason: object) -> Path:
    """Move a damaged file aside (`name.corrupt`, `name.corrupt-1`, ...), log a warning, and return its new path."""
    target, count = path.with_name(f"{path.name}.corrupt"), 0
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.corrupt-{count}")
    path.replace(target)
    log.warning("%s is damaged (%s): moved to %s, computing it again", path, reason, target.name)
    return target
