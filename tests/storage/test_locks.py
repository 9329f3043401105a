"""Waiting for one's turn: one computes, the others read; a dead owner is not waited for."""

import json
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from cli import environment, wait_for

from sqbench.storage import locks, tensorfile
from sqbench.storage.locks import Busy, claim, turn

HOLD = """
import sys, time
from pathlib import Path
from sqbench.storage.locks import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_computes_and_the_others_read(tmp_path):
    computed, found = [], []

    def compute():
        computed.append(threading.get_ident())
        time.sleep(0.3)
        return {"x": torch.arange(3)}, {"made": "once"}

    def work():
        found.append(tensorfile.cached(tmp_path / "statistics.safetensors", compute))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert len(found) == 4
    assert all(torch.equal(tensors["x"], torch.arange(3)) and about == {"made": "once"} for tensors, about in found)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_an_owner_that_fails_hands_on(tmp_path):
    def broken():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        tensorfile.cached(tmp_path / "a.safetensors", broken)
    assert tensorfile.cached(tmp_path / "a.safetensors", lambda: ({}, {"made": "again"}))[1] == {"made": "again"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_claim_that_is_cut_short_while_it_is_written_is_gone(tmp_path, monkeypatch, stop):
    def cut_short(*args):
        raise stop

    monkeypatch.setattr("sqbench.storage.locks.json.dump", cut_short)
    with pytest.raises(type(stop)), locks.claim(tmp_path / "claim.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_dead_owner_is_not_waited_for(tmp_path):
    dead = max(psutil.pids()) + 100_000
    claim = tmp_path / "a.safetensors.claim"
    claim.write_text(json.dumps({"host": socket.gethostname(), "pid": dead, "since": time.time()}))
    before = time.monotonic()
    assert tensorfile.cached(tmp_path / "a.safetensors", lambda: ({}, {}))[1] == {}
    assert time.monotonic() - before < 5
    assert not claim.exists()


def test_who_waits_says_for_whom(tmp_path, caplog):
    caplog.set_level("INFO", logger="sqbench")
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with turn(tmp_path / "claim", "calibration"):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    threading.Timer(0.5, leave.set).start()
    with turn(tmp_path / "claim", "calibration"):
        assert leave.is_set()
    thread.join()
    said = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("calibration: waiting, another process computes it (pid ")


def test_a_dead_owner_that_nobody_has_reaped_is_dead(tmp_path):
    path = tmp_path / "claim"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=environment(), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(Busy), claim(path):
            pass
        owner.kill()
        assert wait_for(lambda: psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE)
        with claim(path):
            pass


def test_a_takeover_that_was_killed_is_taken_over(tmp_path):
    dead = json.dumps({"host": socket.gethostname(), "pid": max(psutil.pids()) + 100_000, "since": time.time()})
    path, taking = tmp_path / "claim", tmp_path / ".claim.taking"
    path.write_text(dead)
    taking.write_text(dead)
    with pytest.raises(Busy, match="takes over at this moment"), claim(path):
        pass
    with claim(path):
        assert not taking.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_under_way_is_left_alone(tmp_path):
    path, taking = tmp_path / "claim", tmp_path / ".claim.taking"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": max(psutil.pids()) + 100_000, "since": time.time()}))
    with claim(taking):
        with pytest.raises(Busy, match="takes over at this moment"), claim(path):
            pass
        assert taking.exists()
        assert path.exists()


def test_patience_outlasts_an_owner_that_is_about_to_end(tmp_path):
    path, inside = tmp_path / "claim", threading.Event()

    def hold():
        with claim(path):
            inside.set()
            time.sleep(0.5)

    owner = threading.Thread(target=hold)
    owner.start()
    inside.wait()
    with claim(path, patience=10):
        pass  # Busy would be raised
    owner.join()
