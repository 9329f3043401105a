"""Points in processes of their own: what kills one is one failed record, and nothing else is lost."""

import json
import os
import re
import time
from multiprocessing.context import SpawnProcess

import psutil
import pytest
import torch

from sqbench.faults import FAULT, ONCE
from sqbench.records.store import Store
from sqbench.running import child, isolation, shared
from sqbench.running.isolation import Share

pytestmark = pytest.mark.slow  # every child imports torch


def records(results):
    return {record.identity["method"]["name"]: record for record in Store(results).records()}


def without_costs(record):
    """A record but for what differs from run to run."""
    kept = {key: value for key, value in record.to_json().items() if key != "cost"}
    kept["provenance"] = {key: value for key, value in record.provenance.items() if key not in ("time", "command", "sweep")}
    kept["config"] = {key: value for key, value in record.config.items() if key not in ("isolate", "results_dir")}
    return kept


def test_a_process_of_its_own_gives_the_same_record(command, results):
    assert command("method=smoothquant", "alpha=0.5", "threads=1", "isolate=true").code == 0
    alone = records(results)["smoothquant"]
    assert command("method=smoothquant", "alpha=0.5", "threads=1", f"results_dir={results.parent / 'other'}").code == 0
    together = records(results.parent / "other")["smoothquant"]
    assert without_costs(alone) == without_costs(together)
    again = command("method=smoothquant", "alpha=0.5", "threads=1", "isolate=true")
    assert "skipped" in again.out + again.err


@pytest.mark.parametrize(("fault", "options", "said"), [
    ("kill@quantize", [], "ended by SIGKILL; the kernel does so when memory runs out"),
    ("segv@evaluate", [], "ended by SIGSEGV"),
    ("hang@quantize", ["limits.seconds=45"], "took more than limits.seconds=45"),
    ("eat@quantize", ["limits.memory_gb=1.5"], "more than limits.memory_gb=1.5"),
])  # fmt: skip
def test_what_kills_a_point_is_one_failed_record(command, results, monkeypatch, fault, options, said):
    monkeypatch.setenv(FAULT, fault)
    ended = command("-m", "method=rtn,fp", "isolate=true", *options)
    assert ended.code == 1
    found = records(results)
    assert found["rtn"].status == "failed"
    assert found["rtn"].error["type"] == "Killed"
    assert said in found["rtn"].error["message"]
    assert said.split(";")[0] in ended.out
    assert found["rtn"].error["message"] in json.dumps(found["rtn"].to_json())
    if "float" in found or "fp" in found:
        assert found["fp"].status == "ok"
    assert not list(results.glob("runs/*/claim.json"))
    monkeypatch.delenv(FAULT)
    assert command("-m", "method=rtn,fp").code == 0
    assert {record.status for record in records(results).values()} == {"ok"}


@pytest.mark.parametrize(("fault", "options", "started"), [
    ("", [], 1),
    ("", ["limits.memory_gb=50"], 3),
    ("kill@quantize", [], 2),
    ("full@quantize", [], 2),  # an exception
])  # fmt: skip
def test_points_share_a_process_until_one_fails(command, results, monkeypatch, tmp_path, fault, options, started):
    seen, start = [], SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", lambda self: (seen.append(self), start(self)))
    monkeypatch.setenv(FAULT, fault)
    monkeypatch.setenv(ONCE, str(tmp_path / "once"))
    ended = command("-m", "method=rtn,minmax,fp", "isolate=true", *options)
    assert ended.code == bool(fault), ended
    assert len(seen) == started
    assert not [process for process in seen if process.is_alive()]
    found = {name: record.status for name, record in records(results).items()}
    assert found == {"rtn": "failed" if fault else "ok", "minmax": "ok", "fp": "ok"}


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_gpu_is_left_empty_between_points(command, results, monkeypatch, on_gpu):
    """The next point on it may be another worker's."""
    emptied, kept = [], []

    class Here:
        def compute(self, point, limits):
            told = child._point(**point)
            kept.append(set(shared._slots))
            return told

    monkeypatch.setattr(isolation, "_child", lambda place: Here())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    assert command("method=rtn", "isolate=true").code == 0
    assert emptied == [True] * on_gpu
    (slots,) = kept
    assert slots == (set() if on_gpu else {"weights", "examples", "model", "swift", "baseline", "statistics"})


def test_what_kills_a_point_after_its_record_leaves_it_as_it_is(command, results, monkeypatch):
    monkeypatch.setenv(FAULT, "kill@after record.json")
    ended = command("method=rtn", "isolate=true")
    assert ended.code == 0, ended
    assert "1 done" in ended.out
    assert records(results)["rtn"].status == "ok"


def test_a_child_that_cannot_begin_says_why(command, results, monkeypatch, tmp_path):
    point = next(iter(re.findall(r"\b[0-9a-f]{12}\b", command("method=rtn", "plan=true").out)))
    (results / "runs" / point / "stdout.log").mkdir(parents=True)
    ended = command("method=rtn", "limits.seconds=100")  # which a child has to be there for
    assert ended.code == 1, ended
    assert "IsADirectoryError" in ended.out
    assert "IsADirectoryError" in records(results)["rtn"].error["message"]
    assert "Traceback" not in ended.out + ended.err


def test_a_crash_leaves_where_it_was_in_the_record(command, results, monkeypatch):
    monkeypatch.setenv(FAULT, "segv@quantize")
    assert command("method=rtn", "isolate=true").code == 1
    assert "in fault" in records(results)["rtn"].error["traceback"]


def test_a_failure_that_passes_is_tried_again(command, results, monkeypatch, tmp_path):
    monkeypatch.setenv(FAULT, "kill@quantize")
    monkeypatch.setenv(ONCE, str(tmp_path / "once"))
    ended = command("method=rtn", "isolate=true", "retry=1")
    assert ended.code == 0
    assert "trying again, 1 of 1" in ended.out + ended.err
    assert records(results)["rtn"].status == "ok"


@pytest.mark.parametrize(("options", "said"), [
    (["limits.seconds=5", "isolate=false"], "limits.seconds=5: only a child process can be ended; leave out isolate=false"),
    (["isolate=true", "limits.memory_gb=0"], "limits.memory_gb=0: must be more than 0"),
    (["retry=-1"], "retry=-1: must be 0 or more"),
])  # fmt: skip
def test_bad_input(command, options, said):
    ended = command("method=rtn", *options)
    assert ended.code == 2
    assert said in ended.out + ended.err


def test_no_child_outlives_the_sweep(command, results, monkeypatch):
    monkeypatch.setenv(FAULT, "hang@quantize")
    before = time.time()
    assert command("method=rtn", "isolate=true", "limits.seconds=10").code == 1
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if child.create_time() > before and "spawn_main" in " ".join(child.cmdline())]


def test_the_child_starts_with_its_own_gpu_and_a_dead_ones_record_names_it(command, results, monkeypatch):
    from sqbench import run
    from sqbench.running import gpus

    seen, start = [], SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", lambda self: (seen.append(os.environ[gpus.VISIBLE]), start(self)))
    monkeypatch.setattr(gpus, "visible", lambda: ["2", "3"])
    monkeypatch.setattr(run, "_share", lambda *rest: Share(threads=1, number=5))
    monkeypatch.setenv(gpus.VISIBLE, "2,3")
    monkeypatch.setenv(FAULT, "kill@quantize")
    assert command("method=rtn", "isolate=true").code == 1
    assert seen == ["3"]
    assert os.environ[gpus.VISIBLE] == "2,3"
    assert records(results)["rtn"].provenance["device"] == "CUDA_VISIBLE_DEVICES=3"
