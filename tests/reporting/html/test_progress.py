"""How far a sweep is."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from examples import build, write

from sqbench.records import sweeps
from sqbench.records.store import Store
from sqbench.reporting.html.progress import progress
from sqbench.reporting.html.results import read

DAY = 86_400.0


def written(results: Path, record: dict[str, Any], at: float) -> str:
    """A record as if it had been written at a time; its id."""
    write(results, record)
    os.utime(results / "runs" / record["point_id"] / "record.json", (at, at))
    return str(record["point_id"])


def test_nothing_was_swept(results: Path) -> None:
    results.mkdir()
    assert progress(results, {}) is None


def test_a_sweep_in_the_middle(results: Path) -> None:
    start = time.time() - DAY
    before = written(results, build(alpha=0.1), start - 10)
    again = build(alpha=0.2, status="failed")
    coming = ["0" * 12, "1" * 12, "2" * 12]
    write(results, again)
    sweeps.begin(results / "sweeps" / "now", [before, again["point_id"], *coming], Store(results), force=False, now=start)
    os.utime(results / "runs" / again["point_id"] / "record.json", (start - 5, start - 5))
    first = progress(results, read(results).records, start + 1)
    assert first is not None
    assert (first.total, first.skipped, first.done, first.failed, first.left, first.seconds_left) == (5, 1, 0, 0, 4, None)

    os.utime(results / "runs" / again["point_id"] / "record.json", (start + 30, start + 30))
    claim = results / "runs" / coming[0] / "claim.json"
    claim.parent.mkdir()
    claim.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}), encoding="utf-8")
    second = progress(results, read(results).records, start + 40)
    assert second is not None
    assert (second.over, second.failed, second.left, second.running) == (2, 1, 3, (coming[0],))
    assert second.seconds_left == pytest.approx(3 * 30 - 10)  # 30 s a point, the last of them 10 s ago
    assert second.active


def test_a_claim_of_a_dead_process_does_not_run(results: Path) -> None:
    claim = results / "runs" / ("3" * 12) / "claim.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "since": 0.0}), encoding="utf-8")
    assert progress(results, {}) is None


def test_points_of_a_forced_sweep_are_done_when_they_are_written_again(results: Path) -> None:
    start = time.time() - DAY
    point = written(results, build(), start - 10)
    sweeps.begin(results / "sweeps" / "now", [point], Store(results), force=True, now=start)
    first = progress(results, read(results).records, start + 1)
    os.utime(results / "runs" / point / "record.json", (start + 9, start + 9))
    second = progress(results, read(results).records, start + 10)
    assert first is not None
    assert second is not None
    assert (first.left, second.left, second.done, second.seconds_left) == (1, 0, 1, None)
