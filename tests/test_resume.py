"""Sweeps that are cut short, by force or on request, and sweeps that meet each other on one folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import Ended, call, contents, start, tiny_run, wait_for
from hydra.core.plugins import Plugins

Command = Callable[..., Ended]
# Points of some tenths of a second: one is always at work between two records, and there are enough for a slow test to catch it.
SWEEP = ("method=smoothquant", "alpha=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,1", "data.windows=50")
POINTS = 12


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def sweep(tiny_folder: Path, text_file: Path, results: Path) -> list[str]:
    return ["-m", *tiny_run(tiny_folder, text_file, results, *SWEEP)]


@pytest.fixture
def command(tiny_folder: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A sweep over the tiny model in this process."""
    return lambda *changes: call("-m", *tiny_run(tiny_folder, text_file, results, *changes), capsys=capsys)


def finished(results: Path) -> list[Path]:
    return sorted(results.glob("runs/*/record.json"))


def claims(results: Path) -> list[Path]:
    return sorted(results.glob("runs/*/claim.json"))


def at_work(results: Path) -> bool:
    """One record is there, and another point is being computed."""
    logs = [path for path in results.glob("runs/*/stdout.log") if not path.with_name("record.json").exists()]
    return bool(finished(results) and logs and claims(results))


def cut_short(sweep: list[str], results: Path, cwd: Path, number: signal.Signals) -> tuple[int, str, str]:
    """Start a sweep, wait for its first record and the next point, and send the signal."""
    process = start(*sweep, cwd=cwd)
    try:
        assert wait_for(lambda: at_work(results) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out, err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(sweep: list[str], results: Path, tmp_path: Path, command: Command) -> None:
    code, _, _ = cut_short(sweep, results, tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = len(finished(results))
    assert 1 <= done < POINTS
    (claim,) = claims(results)  # nobody could take it back
    assert not (claim.parent / "record.json").exists()
    before = {name: what for name, what in contents(results).items() if Path(name).name in ("record.json", "samples.parquet")}
    before = {name: what for name, what in before.items() if (results / name).with_name("record.json").exists()}

    ended = command(*SWEEP)  # at once, not after ten minutes
    assert ended.code == 0, ended.err
    assert f"{POINTS - done} done, {done} skipped" in ended.out
    after = contents(results)
    assert {name: after[name] for name in before} == before  # the same bytes, never written again
    assert len(finished(results)) == POINTS
    assert claims(results) == []
    assert not list(results.rglob("*.corrupt*"))
    assert "damaged" not in ended.err


@pytest.mark.slow
def test_a_launcher_that_loses_a_worker_loses_no_record(
    results: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    launch = launcher.launch

    def lost(self: object, jobs: list[list[str]], initial_job_idx: int) -> None:
        launch(self, jobs[:1], initial_job_idx)
        raise RuntimeError("a worker process died")

    monkeypatch.setattr(launcher, "launch", lost)
    with pytest.raises(RuntimeError, match="a worker process died"):
        command("method=rtn,smoothquant")
    said = capsys.readouterr()
    assert "1 done" in said.out
    assert "what is finished is kept, the same command goes on from here" in said.err
    monkeypatch.undo()
    assert "1 done, 1 skipped" in command("method=rtn,smoothquant").out


@pytest.mark.slow  # waits for a process of its own
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_so_and_leaves_nothing_half_done(
    sweep: list[str], results: Path, tmp_path: Path, command: Command, number: signal.Signals
) -> None:
    code, out, err = cut_short(sweep, results, tmp_path, number)
    assert code == 130, err
    assert "interrupted: what is finished is kept, the same command goes on from here" in err
    assert "Traceback" not in out + err
    assert claims(results) == []
    assert not list(results.rglob("*.part"))
    records = [json.loads(path.read_text()) for path in finished(results)]
    assert 1 <= len(records) < POINTS
    assert {record["status"] for record in records} == {"ok"}  # interrupted is not failed
    assert f"{len(records)} done" in out  # a table of what there is
    assert out.count("smoothquant") == len(records)

    plan = command(*SWEEP, "plan=true")
    assert (len(re.findall(r"finished +│", plan.out)), plan.out.count("to do")) == (len(records), POINTS - len(records))


@pytest.mark.slow
def test_a_sweep_in_two_processes_computes_each_point_once(sweep: list[str], results: Path, tmp_path: Path) -> None:
    pair = [start(*sweep, cwd=tmp_path) for _ in range(2)]
    ends = [process.communicate(timeout=180) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    for out, err in ends:
        assert "Traceback" not in out + err
        assert "damaged" not in err, err  # neither sees what the other has half written
        (summary,) = (line for line in out.splitlines() if "records in" in line)
        assert sum(int(count) for count in re.findall(r"(\d+) (?:done|skipped|busy)", summary)) == POINTS
    done = re.findall(rf"^\[\d+/{POINTS}\] done (?:.* )?([0-9a-f]{{12}})", ends[0][1] + ends[1][1], re.MULTILINE)
    assert len(done) == len(set(done)) == POINTS, ends
    assert len(finished(results)) == POINTS
    assert claims(results) == []


# ---------------------------------------------------------------- claims, as a sweep meets them


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


@pytest.fixture
def one(command: Command, results: Path) -> Path:
    """The folder of a point that is not computed yet."""
    plan = command("method=rtn", "plan=true")
    found = re.search(r"[0-9a-f]{12}", plan.out)
    assert found
    folder = results / "runs" / found[0]
    folder.mkdir(parents=True)
    return folder


def put_claim(folder: Path, pid: int, host: str | None = None, age: float = 0.0) -> None:
    claim = {"host": host or socket.gethostname(), "pid": pid, "since": time.time() - age}
    (folder / "claim.json").write_text(json.dumps(claim))
    os.utime(folder / "claim.json", (time.time() - age,) * 2)


@pytest.mark.slow
def test_a_point_of_a_live_process_is_busy_and_the_others_are_done(
    command: Command, one: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    put_claim(one, sleeper.pid)
    ended = command("method=rtn,minmax")
    assert ended.code == 0  # nothing failed
    assert "1 done, 1 busy" in ended.out
    assert re.search(rf"busy\s+{one.name}", ended.err)
    assert str(sleeper.pid) in ended.err  # who has it
    assert (one / "claim.json").exists()
    assert not (one / "record.json").exists()
    sleeper.communicate()
    ended = command("method=rtn,minmax")
    assert "1 done, 1 skipped" in ended.out
    assert not (one / "claim.json").exists()


@pytest.mark.slow
def test_a_claim_of_a_dead_process_is_taken_over_at_once(command: Command, one: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    put_claim(one, process.pid)
    ended = command("method=rtn")
    assert (ended.code, (one / "claim.json").exists()) == (0, False)
    assert "1 done" in ended.out


@pytest.mark.slow
def test_what_is_finished_needs_no_claim(command: Command, one: Path, sleeper: subprocess.Popen[bytes]) -> None:
    assert command("method=rtn").code == 0
    put_claim(one, sleeper.pid)
    ended = command("method=rtn")
    assert (ended.code, "1 skipped" in ended.out) == (0, True)
    (one / "claim.json").unlink()


def test_a_point_that_another_process_finished_meanwhile_keeps_its_log(
    command: Command, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the record and the claim there is time for another process to finish."""
    from sqbench.records.store import Store

    assert command("method=rtn", "hydra.verbose=true").code == 0
    log = (one / "stdout.log").read_bytes()
    assert log
    answers = iter([False])
    real = Store.finished
    monkeypatch.setattr(Store, "finished", lambda self, point: next(answers, None) is not False and real(self, point))
    ended = command("method=rtn")
    assert (ended.code, "1 skipped" in ended.out) == (0, True)
    assert (one / "stdout.log").read_bytes() == log
