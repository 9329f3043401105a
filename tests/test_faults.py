"""What may break a sweep from outside, end to end. Whatever it is, finished records keep every byte, the same command completes the
sweep, no point is computed twice, and the exit status tells the truth.

Elsewhere: signals at any moment and processes that meet on one folder (test_resume), crashes, hangs and too much memory of a point
(test_isolation), damaged records and caches (test_bad_input), killed training (test_images), damaged checkpoints
(training/test_fit), claims one by one (records/test_store).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli import Ended, Forked, fork, put_back, tiny_run, wait_for
from conftest import training_text

from sqbench.faults import FAULT, ONCE
from sqbench.records import provenance
from sqbench.records.store import Store
from sqbench.reporting.frame import results_frame
from sqbench.run import main
from sqbench.running import identity, shared
from sqbench.storage import files as storage
from sqbench.storage import locks

pytestmark = pytest.mark.slow  # every fault is a sweep of its own, and many are processes
SWEEP = ("-m", "method=rtn,minmax")  # of two points that share the float result
NUMBERS = ("status", "identity", "metrics", "baseline", "delta", "declared", "quantized", "samples")  # but not time and place
Command = Callable[..., Ended]
Background = Callable[..., Forked]


@pytest.fixture
def background(tiny_folder: Path, text_file: Path, results: Path, tmp_path: Path) -> Iterator[Background]:
    """The same command line as `command`, in a process of its own: it can be killed."""
    begun: list[Forked] = []

    def begin(*changes: str, **environment: str) -> Forked:
        flags = [change for change in changes if change.startswith("-")]
        overrides = [change for change in changes if not change.startswith("-")]
        begun.append(fork(*flags, *tiny_run(tiny_folder, text_file, results, *overrides), cwd=tmp_path, **environment))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()  # a stopped one would wait forever
        one.process.join()


@dataclass(frozen=True)
class Whole:
    """A sweep that nothing disturbed.

    Attributes:
        numbers: of its records, by point.
        places: where a fault might have struck, in the order in which they came by.
    """

    numbers: dict[str, Any]
    places: list[str]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(training_text(), encoding="utf-8")
    places: list[str] = []
    with put_back(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "fault", places.append)
        patch.setattr(provenance, "fault", places.append)
        sys.argv = ["sqbench.run", "-m", *tiny_run(tiny_folder, folder / "text.txt", folder / "results", *SWEEP[1:])]
        with pytest.raises(SystemExit) as ended:
            main()
    shared._slots.clear()
    assert not ended.value.code
    for name in ("points.json", "samples.parquet", "record.json"):
        assert {f"before {name}", f"after {name}"} <= set(places)
    assert sum(place.endswith(".safetensors") for place in places) == 12  # before and after five collectors and a float result
    assert {"load", "baseline", "calibrate", "quantize", "lower", "evaluate"} <= set(places)
    return Whole(numbers(folder / "results"), list(dict.fromkeys(places)))


def numbers(results: Path) -> dict[str, Any]:
    """What every record says, by point."""
    return {record.point_id: {key: getattr(record, key) for key in NUMBERS} for record in Store(results).records()}


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


def completes(command: Command, results: Path, whole: Whole, *changes: str) -> Ended:
    """The same command computes what is missing, once, and the numbers are those of an undisturbed sweep."""
    there = sum(f"runs/{point}/record.json" in finished(results) for point in whole.numbers)
    with kept(results):
        ended = command(*SWEEP, *changes)
    assert ended.code == 0, ended
    counts = {"done": len(whole.numbers) - there, "skipped": there}
    assert ", ".join(f"{count} {state}" for state, count in counts.items() if count) + " · records in" in ended.out
    assert {point: found for point, found in numbers(results).items() if point in whole.numbers} == whole.numbers
    return ended


# ---------------------------------------------------------------- at every write and every stage


def test_killed_at_every_write_and_stage(background: Background, command: Command, results: Path, whole: Whole) -> None:
    for place in whole.places:  # each start goes on from where the last one was killed, and comes one place further
        with kept(results):
            ended = background(*SWEEP, **{FAULT: f"kill@{place}"}).wait()
        assert ended.code == -signal.SIGKILL, (place, ended)
    completes(command, results, whole)
    assert not [path for path in left_over(results) if path.suffix != ".part" and locks.held(path)]


def test_interrupted_at_every_write_and_stage(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, kind in zip(whole.places, cycle(["term", "int"]), strict=False):
        with kept(results), monkeypatch.context() as patch:
            patch.setenv(FAULT, f"{kind}@{place}")
            ended = command(*SWEEP)
        assert ended.code == 130, (place, ended)
        assert "interrupted: what is finished is kept" in ended.err, place
        assert "Traceback" not in ended.out + ended.err, (place, ended)
        assert left_over(results) == [], place
    completes(command, results, whole)


def test_a_disk_full_at_every_write_and_stage(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in [place for place in whole.places if not place.startswith("after ")]:
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


def test_a_disk_that_is_really_full(command: Command, results: Path, whole: Whole) -> None:
    with mount(results, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        assert command("method=rtn").code == 0
        for leave in (0, 4_096, 8_192, 16_384):  # for nothing, for a claim, for a log, for the samples
            fill(results / "ballast", leave)
            with kept(results):
                ended = command(*SWEEP)
            assert ended.code in (1, 2), (leave, ended)
            assert "No space left on device" in ended.out + ended.err
            assert "Traceback" not in ended.out + ended.err, (leave, ended)
            assert left_over(results) == []
            (results / "ballast").unlink()
        completes(command, results, whole)


def test_a_folder_that_is_read_only(command: Command, background: Background, results: Path, whole: Whole) -> None:
    with mount(results, "-t", "tmpfs", "-o", "size=20m", "tmpfs"):
        assert command("method=rtn").code == 0
        read_only(results, True)
        with kept(results):
            ended = command(*SWEEP)
        assert ended.code == 2
        assert f"results_dir={results}: cannot be written (Read-only file system); use a folder of your own" in ended.err
        read_only(results, False)
        completes(command, results, whole)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Nothing can be made, replaced or removed in a folder and those below it: what is open stays so. Not even root can."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    if shutil.which("chattr") is None:
        pytest.skip("nothing here makes a folder immutable: no such command")
    marked = subprocess.run(["chattr", "+i", *map(str, folders)], capture_output=True, text=True)
    try:
        if marked.returncode:
            pytest.skip(f"no folder can be made immutable here: {marked.stderr.strip()}")
        yield
    finally:
        subprocess.run(["chattr", "-i", *map(str, folders)], check=not marked.returncode, capture_output=True)


@pytest.mark.parametrize("isolate", ["false", "true"])
def test_a_folder_that_turns_unwritable_half_way(
    command: Command, background: Background, results: Path, whole: Whole, isolate: str, tmp_path: Path
) -> None:
    once = {ONCE: str(tmp_path / "once")}
    running = background("-m", "method=fp,rtn,minmax", f"isolate={isolate}", **{FAULT: "stop@quantize"}, **once)
    assert wait_for(running.stopped)  # over the second point: the float model is not quantized
    with unwritable(results), kept(results):
        ended = running.go_on()
    assert ended.code == 1, ended
    assert "1 done, 2 failed" in ended.out
    assert ended.out.count("cannot write: ") >= 2
    assert "Traceback" not in ended.out + ended.err
    completes(command, results, whole)
    assert left_over(results) == []


def test_a_folder_deleted_under_a_sweep_is_no_success(
    command: Command, background: Background, results: Path, whole: Whole
) -> None:
    """What was finished before is named as gone; what comes after is kept, and the same command makes the rest."""
    running = background("-m", "method=fp,rtn,minmax", **{FAULT: "stop@quantize"})  # the float model is not quantized
    assert wait_for(running.stopped)
    (gone,) = (path.parent.name for path in results.glob("runs/*/record.json"))
    shutil.rmtree(results)
    running.resume()
    assert wait_for(running.stopped)  # in the next point, in a new folder
    ended = running.go_on()
    assert ended.code == 1, ended
    assert f"{gone}" in ended.out
    assert "its record was there and is gone" in ended.out
    assert "2 done, 1 failed" in ended.out
    assert "Traceback" not in ended.out + ended.err
    ended = completes(command, results, whole)
    assert "2 skipped" in ended.out


def test_a_point_whose_data_is_gone_is_one_failed_point(
    command: Command, background: Background, results: Path, whole: Whole, text_file: Path
) -> None:
    running = background("-m", "method=fp,rtn,minmax", **{FAULT: "stop@load", ONCE: str(results.parent / "once")})
    assert wait_for(running.stopped)  # the first point has found its data
    text = text_file.read_text(encoding="utf-8")
    text_file.unlink()
    running.resume()
    ended = running.wait()
    assert ended.code == 1, ended
    assert str(text_file) in ended.out
    assert "Traceback" not in ended.out + ended.err
    text_file.write_text(text, encoding="utf-8")
    completes(command, results, whole)


def test_a_sweep_killed_over_a_hanging_point_leaves_no_child(
    command: Command, background: Background, results: Path, whole: Whole, tmp_path: Path
) -> None:
    running = background(*SWEEP, "isolate=true", **{FAULT: "hang@quantize"})
    assert wait_for(lambda: bool(list(results.glob("cache/calibration/*.safetensors"))))
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert children
    running.process.kill()
    assert running.wait().code == -signal.SIGKILL
    assert psutil.wait_procs(children, timeout=20)[1] == []
    completes(command, results, whole)


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("damage", ["cut off", "a bit flipped", "of another point"])
def test_damaged_samples_are_not_read_and_their_point_is_done_again(
    command: Command, results: Path, whole: Whole, damage: str
) -> None:
    assert command(*SWEEP).code == 0
    path, other = sorted(results.glob("runs/*/samples.parquet"))
    content = path.read_bytes()
    at = len(content) // 4
    damaged = {
        "cut off": content[:-at],
        "a bit flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "of another point": other.read_bytes(),
    }[damage]
    path.write_bytes(damaged)
    assert Store(results).samples(path.parent.name) is None
    ended = command(*SWEEP)
    assert (ended.code, "1 done, 1 skipped" in ended.out) == (0, True)
    assert f"{path} is damaged (not what its record was computed from)" in ended.err
    assert path.with_name("samples.parquet.corrupt").read_bytes() == damaged
    assert path.read_bytes() == content
    assert numbers(results) == whole.numbers


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("days", [-1, 400])
def test_a_claim_of_this_host_is_judged_by_its_process_whatever_the_clock_says(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """The clock is set after a point was claimed: a live process is let alone, a dead one is not waited for."""
    one = Store(results).folder(next(iter(whole.numbers)))
    boot = psutil.boot_time()
    with locks.claim(one / "claim.json"), monkeypatch.context() as patch:
        patch.setattr("psutil._pslinux.boot_time", lambda: boot + days * 86_400, raising=False)
        patch.setattr("psutil.boot_time", lambda: boot + days * 86_400)
        patch.setattr("time.time", lambda now=time.time: now() + days * 86_400)
        assert "1 done, 1 busy" in command(*SWEEP).out
        held = json.loads((one / "claim.json").read_text())
        held["born"][1] -= 100  # of a process that had our number before us
        (one / "claim.json").write_text(json.dumps(held))
        assert "1 done, 1 skipped" in command(*SWEEP).out
    assert numbers(results) == whole.numbers


@pytest.mark.parametrize(("age", "alive"), [(100_000.0, True), (-100_000.0, False)])
def test_a_claim_of_a_host_with_another_clock_is_judged_by_its_heartbeat(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, age: float, alive: bool
) -> None:
    monkeypatch.setattr(locks, "WATCH", 0.5)
    claim = Store(results).folder(next(iter(whole.numbers))) / "claim.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": time.time(), "token": "x"}))
    at = [time.time() - age]
    os.utime(claim, (at[0], at[0]))
    done = threading.Event()

    def beat() -> None:
        while alive and not done.wait(0.1):
            at[0] += 60
            os.utime(claim, (at[0], at[0]))

    heart = threading.Thread(target=beat)
    heart.start()
    ended = command(*SWEEP)
    done.set()
    heart.join()
    assert ended.code == 0
    assert ("1 done, 1 busy" if alive else "2 done") in ended.out
    assert claim.exists() is alive
    claim.unlink(missing_ok=True)
    completes(command, results, whole)


def test_a_clock_that_goes_back_changes_no_duration(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 2e9 - 3600 * next(ticks))
        assert command(*SWEEP).code == 0
    seconds = [record.cost["seconds"] for record in Store(results).records()]
    assert all(0 <= value < 100 for record in seconds for value in record.values())
    completes(command, results, whole)


# ---------------------------------------------------------------- two versions of the code


def test_another_version_with_the_same_numbers_reuses_what_is_there(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*SWEEP).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("sqbench.__version__", "99.0")
        provenance._static.cache_clear()
        completes(command, results, whole)
    provenance._static.cache_clear()


def test_another_revision_computes_points_of_its_own_beside_the_old_ones(
    command: Command, results: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision has other numbers (running.identity.REVISION): tables mark its points as a variant, and mix nothing."""
    assert command(*SWEEP).code == 0
    with kept(results), monkeypatch.context() as patch:
        patch.setattr(identity, "REVISION", identity.REVISION + 1)
        ended = command(*SWEEP)
        assert (ended.code, "2 done" in ended.out) == (0, True)
    assert len(numbers(results)) == 4
    frame = results_frame(Store(results).records(brief=True))
    assert sorted(frame["variant"].unique()) != [""]
    with kept(results):
        assert "2 skipped" in command(*SWEEP).out  # the old code finds its own


# ---------------------------------------------------------------- Weights & Biases


def test_a_tracker_without_a_server_costs_no_point(background: Background, command: Command, results: Path, whole: Whole) -> None:
    ended = background(
        *(*SWEEP, "tracker=wandb", "tracker.mode=online"),
        **{"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"},
    ).wait()
    assert ended.code == 0, ended
    assert ended.err.count("W&B server unreachable") == 1
    assert "Traceback" not in ended.out + ended.err
    assert len(list(results.glob("wandb/offline-run-*"))) == 2
    completes(command, results, whole)


def test_a_tracker_that_dies_half_way_costs_no_point(background: Background, results: Path, whole: Whole) -> None:
    running = background("-m", "method=fp,rtn,minmax", "tracker=wandb", **{FAULT: "stop@quantize", "WANDB_MODE": "offline"})
    assert wait_for(running.stopped)  # the float model's run is written, and the service that wrote it waits for the next
    service = [child for child in psutil.Process(running.process.pid).children(recursive=True) if "wandb" in child.name()]
    assert service
    for child in service:
        child.kill()
    running.resume()
    assert wait_for(running.stopped)
    ended = running.go_on()
    assert ended.code == 0, ended
    assert "W&B run of point" in ended.err
    assert "is incomplete" in ended.err
    assert "Traceback" not in ended.out + ended.err, ended
    found = numbers(results)
    assert {name: found[name] for name in whole.numbers} == whole.numbers
