"""What may break a sweep from outside, end to end. Whatever it is, finished records keep every byte, the same command completes the
sweep, no point is computed twice, and the exit status tells the truth.

Elsewhere: signals at any moment and processes that meet on one folder (test_resume), crashes, hangs and too much memory of one point
(test_isolation), damaged records and caches (test_bad_input), damaged checkpoints (training/test_fit), claims one by one
(records/test_store).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli import Ended, Forked, fork, tiny_run, wait_for

from sqbench import locks, storage
from sqbench.faults import FAULT
from sqbench.records import identity, provenance
from sqbench.records.store import Store

SWEEP = ("-m", "method=rtn,minmax")  # of two points that share the float result
NUMBERS = ("status", "identity", "metrics", "baseline", "delta", "outcomes", "quantized")  # of a record; the rest is time and place
Command = Callable[..., Ended]
Background = Callable[..., Forked]


@pytest.fixture
def background(tiny_folder: Path, text_file: Path, results: Path, tmp_path: Path) -> Background:
    """The same command line as `command`, in a process of its own: it can be killed."""

    def begin(*changes: str, **environment: str) -> Forked:
        flags = [change for change in changes if change.startswith("-")]
        overrides = [change for change in changes if not change.startswith("-")]
        return fork(*flags, *tiny_run(tiny_folder, text_file, results, *overrides), cwd=tmp_path, **environment)

    return begin


@pytest.fixture
def whole(command: Command, tmp_path: Path) -> dict[str, Any]:
    """The numbers of a sweep that nothing disturbed, by point."""
    assert command(*SWEEP, f"results_dir={tmp_path / 'whole'}").code == 0
    return numbers(tmp_path / "whole")


def numbers(results: Path) -> dict[str, Any]:
    """What every record says, by point."""
    return {record["point_id"]: {key: record[key] for key in NUMBERS} for record in Store(results).records()}


def finished(results: Path) -> dict[str, tuple[int, int, bytes]]:
    """The files of finished points: which file on disk, when written, and its bytes."""
    folders = [path.parent for path in results.glob("runs/*/record.json") if json.loads(path.read_bytes())["status"] == "ok"]
    paths = [folder / name for folder in folders for name in ("record.json", "samples.parquet")]
    return {str(path.relative_to(results)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def left_over(results: Path) -> list[Path]:
    """Claims and half-written files."""
    return [path for path in results.rglob("*") if path.name.endswith((".part", ".claim", "claim.json"))]


@contextmanager
def kept(results: Path) -> Iterator[None]:
    """What is finished before the block is never written again inside it."""
    before = finished(results)
    yield
    after = finished(results)
    assert {name: after.get(name) for name in before} == before


def completes(command: Command, results: Path, whole: dict[str, Any], *changes: str) -> Ended:
    """The same command computes what is missing, once, and the numbers are those of an undisturbed sweep."""
    there = sum(name.endswith("record.json") for name in finished(results))
    with kept(results):
        ended = command(*SWEEP, *changes)
    assert ended.code == 0, ended
    counts = {"done": len(whole) - there, "skipped": there}
    assert ", ".join(f"{count} {state}" for state, count in counts.items() if count) + " · records in" in ended.out
    assert numbers(results) == whole
    return ended


# ---------------------------------------------------------------- at every write and every stage


@pytest.fixture
def places(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every place of a sweep where a fault may strike, in the order in which it comes by."""
    found: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "fault", found.append)
        patch.setattr(provenance, "fault", found.append)
        assert command(*SWEEP, f"results_dir={tmp_path / 'places'}").code == 0
    for name in ("points.json", "samples.parquet", "record.json"):
        assert {f"before {name}", f"after {name}"} <= set(found)
    assert sum(place.endswith(".safetensors") for place in found) == 4  # before and after a calibration and a float result
    assert {"load", "baseline", "calibrate", "quantize", "lower", "evaluate"} <= set(found)
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_killed_at_every_write_and_stage(
    background: Background, command: Command, results: Path, whole: dict[str, Any], places: list[str]
) -> None:
    for place in places:  # each start goes on from where the last one was killed, and comes one place further
        with kept(results):
            ended = background(*SWEEP, **{FAULT: f"kill@{place}"}).wait()
        assert ended.code == -signal.SIGKILL, (place, ended)
    completes(command, results, whole)
    assert not [path for path in left_over(results) if locks.held(path) and not path.name.endswith(".part")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["term", "int"])
def test_interrupted_at_every_write_and_stage(
    command: Command, results: Path, whole: dict[str, Any], places: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for place in places:
        with kept(results), monkeypatch.context() as patch:
            patch.setenv(FAULT, f"{kind}@{place}")
            ended = command(*SWEEP)
        assert ended.code == 130, (place, ended)
        assert "interrupted: what is finished is kept" in ended.err, place
        assert "Traceback" not in ended.out + ended.err, (place, ended)
        assert left_over(results) == [], place
    completes(command, results, whole)


@pytest.mark.slow
def test_a_disk_full_at_every_write_and_stage(
    command: Command, results: Path, whole: dict[str, Any], places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in [place for place in places if not place.startswith("after ")]:
        with kept(results), monkeypatch.context() as patch:
            patch.setenv(FAULT, f"full@{place}")
            ended = command(*SWEEP)
        assert ended.code in (1, 2), (place, ended)
        assert "No space left on device" in ended.out + ended.err, place
        assert "Traceback" not in ended.out + ended.err, (place, ended)
        assert left_over(results) == [], place
    completes(command, results, whole)


# ---------------------------------------------------------------- real file systems


@contextmanager
def mount(folder: Path, *options: str) -> Iterator[None]:
    """A file system on a folder for the block."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip() if done else 'no such command'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def read_only(folder: Path, yes: bool) -> None:
    """Turn what is mounted on a folder read-only or back: permissions do not stop root."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(folder)], check=True)


def fill(path: Path, leave: int) -> None:
    """Take all the room that a small file system has, but for some bytes."""
    room = os.statvfs(path.parent)
    path.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - leave)))


@pytest.mark.slow
def test_a_disk_that_is_really_full(command: Command, results: Path, whole: dict[str, Any]) -> None:
    with mount(results, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        assert command("method=rtn").code == 0
        for leave in (0, 8_000, 16_000, 40_000):  # for nothing, for a claim, for a log, for the samples
            fill(results / "ballast", leave)
            with kept(results):
                ended = command(*SWEEP)
            assert ended.code in (1, 2), (leave, ended)
            assert "No space left on device" in ended.out + ended.err
            assert "Traceback" not in ended.out + ended.err, (leave, ended)
            assert left_over(results) == []
            (results / "ballast").unlink()
        completes(command, results, whole)


@pytest.mark.slow
def test_a_folder_that_is_read_only_or_becomes_so(
    command: Command, background: Background, results: Path, whole: dict[str, Any]
) -> None:
    with mount(results, "-t", "tmpfs", "-o", "size=20m", "tmpfs"):
        assert command("method=rtn").code == 0
        read_only(results, True)
        with kept(results):
            ended = command(*SWEEP)
        assert ended.code == 2
        assert f"results_dir={results}: cannot be written (Read-only file system); a folder of your own works" in ended.err
        read_only(results, False)

        with kept(results):
            running = background(*SWEEP, **{FAULT: "stop@quantize"})
            assert wait_for(running.stopped)
            read_only(results, True)
            ended = running.go_on()
            read_only(results, False)
        assert ended.code == 1, ended
        assert "cannot write: [Errno 30] Read-only file system" in ended.out
        assert "Traceback" not in ended.out + ended.err, ended
        completes(command, results, whole)


@pytest.mark.slow
def test_a_folder_deleted_under_a_sweep_is_no_success(
    command: Command, background: Background, results: Path, whole: dict[str, Any]
) -> None:
    running = background(*SWEEP, **{FAULT: "stop@quantize", "SQBENCH_FAULT_ONCE": str(results.parent / "once")})
    assert wait_for(running.stopped)
    assert running.go_on().code == 0
    assert command("method=fp").code == 0
    gone = {path.parent.name for path in results.glob("runs/*/record.json")}
    (results.parent / "once").unlink()
    running = background("-m", "method=rtn,minmax,mse", **{FAULT: "stop@quantize", "SQBENCH_FAULT_ONCE": str(results.parent / "once")})
    assert wait_for(running.stopped)
    shutil.rmtree(results)
    ended = running.go_on()
    assert ended.code == 1, ended
    assert len(gone) == 3
    print(ended)
    completes(command, results, whole)
