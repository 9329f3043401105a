"""The same sweep under Hydra's launchers: the same records, each point computed once, and baselines and calibration shared."""

import json
from contextlib import nullcontext

import psutil
import pytest
from cli import contents, run, start, tiny_run, wait_for

from benchmarks.launchers import PLUGINS, comparable, options, unavailable
from benchmarks.slurm import one_node

pytestmark = pytest.mark.slow  # every point is a process that imports torch
SWEEP = ["method=rtn,smoothquant", "alpha=0.3,0.5", "bits=w8a8", "threads=1"]


def needs(launcher):
    reason = unavailable(launcher)
    return pytest.mark.skipif(bool(reason), reason=reason)


@pytest.fixture(scope="module")
def alone(tiny_folder, tmp_path_factory):
    """The sweep one point after the other, in one process."""
    from conftest import training_text

    folder = tmp_path_factory.mktemp("alone")
    (folder / "text.txt").write_text(training_text(), encoding="utf-8")
    ended = run("-m", *tiny_run(tiny_folder, folder / "text.txt", folder / "results", *SWEEP), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("launcher", [pytest.param(name, marks=needs(name)) for name in PLUGINS])
def test_the_records_are_the_same(alone, tiny_folder, tmp_path, launcher):
    line = ["-m", *tiny_run(tiny_folder, alone / "text.txt", tmp_path / "results", *SWEEP, *options(launcher))]
    with one_node() if launcher == "slurm" else nullcontext({}) as environment:
        ended = run(*line, cwd=tmp_path, **environment)
        again = run(*line, cwd=tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    assert "3 done" in ended.stdout
    assert comparable(tmp_path / "results") == comparable(alone / "results")
    assert not list((tmp_path / "results").rglob("*claim*"))
    names = {path.relative_to(alone) for path in (alone / "results" / "cache").rglob("*.safetensors")}
    assert {path.relative_to(tmp_path) for path in (tmp_path / "results" / "cache").rglob("*.safetensors")} == names
    assert (again.returncode, "3 skipped" in again.stdout) == (0, True)


@needs("cores")
def test_a_crash_under_a_launcher_is_one_failed_point(alone, tiny_folder, tmp_path):
    line = ["-m", *tiny_run(tiny_folder, alone / "text.txt", tmp_path / "results", *SWEEP, *options("cores"))]
    ended = run(*line, cwd=tmp_path, SQBENCH_FAULT="segv@quantize", SQBENCH_FAULT_ONCE=str(tmp_path / "once"))
    assert ended.returncode == 1, ended.stderr
    assert "2 done, 1 failed" in ended.stdout
    assert "SIGSEGV" in ended.stdout


@pytest.mark.parametrize("launcher", [pytest.param(name, marks=needs(name)) for name in ("cores", "cluster")])
def test_a_worker_that_is_killed_takes_no_record_with_it(alone, tiny_folder, tmp_path, launcher):
    def records():
        return {name: found for name, found in contents(runs).items() if name.endswith("record.json")}

    runs = tmp_path / "results" / "runs"
    line = ["-m", *tiny_run(tiny_folder, alone / "text.txt", tmp_path / "results", *SWEEP, *options(launcher))]
    running = start(*line, cwd=tmp_path, SQBENCH_FAULT="hang@quantize", SQBENCH_FAULT_ONCE=str(tmp_path / "once"))
    assert wait_for(lambda: (len(list(runs.glob("*/record.json"))), len(list(runs.glob("*/claim.json")))) == (2, 1))
    before = records()
    (claim,) = runs.glob("*/claim.json")
    psutil.Process(json.loads(claim.read_text())["pid"]).parent().kill()
    out, err = running.communicate(timeout=120)
    if launcher == "cluster":  # Ray gives its task to another worker
        assert (running.returncode, "3 done" in out) == (0, True), (out, err)
    else:
        assert running.returncode == 1, (out, err)
        assert "what is finished is kept, the same command goes on from here" in err
        again = run(*line, cwd=tmp_path)
        assert (again.returncode, "1 done, 2 skipped" in again.stdout) == (0, True), again
    assert comparable(tmp_path / "results") == comparable(alone / "results")
    assert before.items() <= records().items()  # the same bytes, never written again


def test_a_launcher_that_is_not_installed_says_what_installs_it(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    line = ["-m", *tiny_run(tiny_folder, tmp_path / "text.txt", tmp_path / "results", "hydra/launcher=rays")]
    ended = run(*line, cwd=tmp_path)
    assert ended.returncode == 2
    assert "hydra/launcher=rays: known: " in ended.stderr
    assert "slurm_local" in ended.stderr
    assert "pip install" not in ended.stderr
