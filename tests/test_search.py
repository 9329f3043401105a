"""A search through the command line: normal points, chosen by results, found again, stopped early, and refused with a reason."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli import Ended, call, paste, run, start, tiny_run, wait_for
from hydra.types import RunMode
from omegaconf import OmegaConf
from test_launchers import needs

from sqbench.faults import FAULT, ONCE
from sqbench.records import sweeps
from sqbench.records.store import Store
from sqbench.run import _share
from sqbench.running.isolation import Share
from sqbench.sweeps import sweep

Command = Callable[..., Ended]
ALPHA = ("method=smoothquant", "bits=w8a8", "alpha=interval(0,1)")


@pytest.fixture
def search(tiny_folder: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A search over the tiny model in this process; `keys` are those of the sweeper."""

    def run(*changes: str, **keys: Any) -> Ended:
        own = [f"hydra.sweeper.{key}={value}" for key, value in keys.items()]
        return call("-m", "hydra/sweeper=search", *own, *tiny_run(tiny_folder, text_file, results, *changes), capsys=capsys)

    return run


def records(results: Path) -> dict[str, dict[str, Any]]:
    return {record.point_id: record for record in Store(results).records()}


def study(results: Path) -> dict[str, Any]:
    """What the latest search wrote down."""
    latest = sweeps.latest(results)
    assert latest is not None
    content: dict[str, Any] = json.loads((results / "sweeps" / latest.name / "search.json").read_text())
    return content


def counts(ended: Ended) -> str:
    """`3 done, 1 skipped` of the line below the table."""
    (line,) = (line for line in ended.out.splitlines() if " · records in " in line)
    return line.partition(" · ")[0]


@pytest.mark.slow
def test_a_search_is_a_sweep_of_normal_points(search: Command, command: Command, results: Path, tmp_path: Path) -> None:
    ended = search(*ALPHA, trials=4)
    assert ended.code == 0, ended.err
    assert counts(ended) == "4 done"
    found, told = records(results), study(results)
    assert [trial["state"] for trial in told["trials"]] == ["complete"] * 4
    for trial in told["trials"]:
        (point_id,) = trial["points"]
        assert trial["parameters"] == {"alpha": found[point_id].identity["method"]["alpha"]}
        assert trial["values"] == [found[point_id].metrics["perplexity"]]
    best = min(found.values(), key=lambda record: record.metrics["perplexity"])
    assert told["trials"][told["best"]]["points"] == [best.point_id]
    assert f"best of 4 trials: perplexity {best.metrics['perplexity']:.2f} at alpha=" in ended.out
    assert f"· point {best.point_id}\n" in ended.out
    (line,) = (line for line in ended.out.splitlines() if line.startswith("    python -m sqbench.run"))
    assert line.strip() == best.provenance["command"]
    again = paste(line, cwd=tmp_path)
    assert (again.returncode, f"skipped {best.point_id}" in again.stderr) == (0, True), again.stderr

    latest = sweeps.latest(results)
    assert latest is not None
    assert sorted(latest.points) == sorted(latest.todo) == sorted(found)
    alphas = ",".join(str(record.identity["method"]["alpha"]) for record in found.values())
    assert counts(command("-m", "method=smoothquant", "bits=w8a8", f"alpha={alphas}")) == "4 skipped"


@pytest.mark.slow
def test_a_search_goes_on_where_it_was(search: Command, results: Path, tmp_path: Path) -> None:
    """Nothing but records is stored: the first trials come out the same because the results are the same."""
    assert counts(search(*ALPHA, trials=3)) == "3 done"
    first = study(results)["trials"]
    assert counts(search(*ALPHA, trials=6)) == "3 done, 3 skipped"
    second = study(results)["trials"]
    assert second[:3] == first
    at_once = search(*ALPHA, f"results_dir={tmp_path / 'other'}", trials=6)
    assert counts(at_once) == "6 done"
    assert [trial["points"] for trial in study(tmp_path / "other")["trials"]] == [trial["points"] for trial in second]
    assert counts(search(*ALPHA, f"results_dir={tmp_path / 'other'}", trials=6, seed=1)) == "6 done"


@pytest.mark.slow
def test_it_is_as_good_as_the_grid(search: Command, command: Command, results: Path) -> None:
    assert command("-m", "method=smoothquant", "bits=w8a8", "alpha=0.3,0.5,0.8").code == 0
    grid = [record.metrics["kl_to_fp"] for record in records(results).values()]
    ended = search(*ALPHA, trials=12, metric="kl_to_fp")
    assert ended.code == 0, ended.err
    told = study(results)
    assert told["direction"] == "minimize"
    assert told["trials"][told["best"]]["values"][-1] <= min(grid)


@pytest.mark.slow
def test_trials_that_start_badly_end_early(search: Command, results: Path) -> None:
    ended = search(*ALPHA, trials=6, rungs="[0.25,0.5,1]", jobs=2)
    assert ended.code == 0, ended.err
    found, told = records(results), study(results)
    for trial in told["trials"]:
        windows = [found[point_id].identity["data"]["windows"] for point_id in trial["points"]]
        assert windows == [1, 2, 4][: len(windows)]
        assert (trial["state"] == "complete") == (len(windows) == 3)
    states = [trial["state"] for trial in told["trials"]]
    assert set(states) == {"complete", "pruned"}
    assert f"best of 6 trials, {states.count('pruned')} stopped early: perplexity " in ended.out
    assert len(told["trials"][told["best"]]["points"]) == 3
    assert counts(ended) == f"{len(found)} done"
    again = search(*ALPHA, trials=6, rungs="[0.25,0.5,1]", jobs=2)
    assert (again.code, counts(again)) == (0, f"{len(found)} skipped"), again.err
    assert study(results) == told


@pytest.mark.slow
def test_equal_points_are_computed_once_by_force_too(search: Command, results: Path) -> None:
    """Plain rounding has no alpha: whatever is chosen is the same point."""
    for more in ([], ["force=true"]):
        ended = search("method=rtn", "alpha=interval(0,1)", *more, trials=5, jobs=2)
        assert (ended.code, counts(ended)) == (0, "1 done"), ended.err
        assert len({tuple(trial["points"]) for trial in study(results)["trials"]}) == 1
    assert len(study(results)["trials"]) == 5


@pytest.mark.slow
def test_a_failed_point_is_one_failed_trial(
    search: Command, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT, "full@quantize")
    monkeypatch.setenv(ONCE, str(tmp_path / "once"))
    ended = search(*ALPHA, trials=3)
    assert (ended.code, counts(ended)) == (1, "2 done, 1 failed")
    assert "best of 3 trials, 1 without a result: perplexity" in ended.out
    first, *others = study(results)["trials"]
    assert (first["state"], "No space left" in first["error"], len(first["points"])) == ("fail", True, 1)
    assert [trial["state"] for trial in others] == ["complete"] * 2
    monkeypatch.delenv(ONCE)
    nothing = search(*ALPHA, trials=2, seed=5)
    assert (nothing.code, "no best: 2 trials, 2 without a result" in nothing.out) == (1, True)


@pytest.mark.slow
def test_values_that_work_one_by_one_and_not_together_are_passed_over(search: Command, results: Path) -> None:
    ended = search("method=minmax", "bits=w8a8", "bits.ops=linear,linear+matmul", "calibration.source=data,weights", trials=8)
    assert ended.code == 0, ended.err
    assert re.search(r"trial \d+ cannot work: bits\.ops=linear\+matmul: calibration\.source=weights says nothing", ended.err)
    states = {trial["state"] for trial in study(results)["trials"]}
    assert states == {"complete", "fail"}
    assert counts(ended) == "3 done"


@pytest.mark.parametrize(("changes", "keys", "said"), [
    (["alpha=0.5"], {}, "hydra/sweeper=search: no key has several values"),
    (["alpha=interval(0,1.5)"], {}, "alpha=1.5: must be a number from 0 to 1, or auto"),
    (["method=rtn,awq", "bits=w8a8", "bits.weights.bits=range(0,9)"], {}, "bits.weights.bits=0"),
    (["alpha=interval(0,1)", "layers=each"], {}, "layers=each: is all groups of layers"),
    (["results_dir=a,b"], {}, "results_dir=a,b: one sweep has one value of it"),
    (["alpha=interval(0,1)"], {"trials": 0}, "hydra.sweeper.trials=0: must be 1 or more"),
    (["alpha=interval(0,1)"], {"trials": "many"}, "hydra.sweeper.trials=many: must be 1 or more"),
    (["alpha=interval(0,1)"], {"jobs": 0}, "hydra.sweeper.jobs=0: must be 1 or more"),
    (["alpha=interval(0,1)"], {"seed": 2**32}, "hydra.sweeper.seed=4294967296: must be a number of 32 bits"),
    (["alpha=interval(0,1)"], {"direction": "minimise"}, "hydra.sweeper.direction=minimise: did you mean minimize?"),
    (["alpha=interval(0,1)"], {"rungs": "[0.5,0.25,1]"}, "rungs=[0.5, 0.25, 1]: must be shares that grow up to 1"),
    (["alpha=interval(0,1)"], {"rungs": "[0.25,0.5]"}, "rungs=[0.25, 0.5]: must be shares that grow up to 1"),
    (["alpha=interval(0,1)"], {"rungs": "[0,1]"}, "rungs=[0, 1]: must be shares that grow up to 1"),
    (["alpha=interval(0,1)"], {"rungs": "0.5"}, "rungs=0.5: must be shares that grow up to 1"),
    (["alpha=interval(0,1)"], {"rungs": "[0.1,0.2,1]"}, "of data.windows=4 they are [1, 1, 4]"),
    (["alpha=interval(0,1)", "eval=latency", "eval.prompt=8"], {"rungs": "[0.5,1]"}, "eval=latency does not get cheaper"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(
    search: Command, results: Path, changes: list[str], keys: dict[str, Any], said: str
) -> None:
    ended = search(*changes, **keys)
    assert (ended.code, said in ended.err, ended.out) == (2, True, ""), ended.err
    assert ended.err.startswith("error: ")
    assert not (results / "sweeps").exists()


@pytest.mark.slow
def test_shares_of_all_images_need_their_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["model=vit_nano", "method=percentile", "method.percentile=interval(99,100)", f"results_dir={tmp_path}"]
    rungs = "hydra.sweeper.rungs=[0.25,1]"
    ended = call("-m", "hydra/sweeper=search", rungs, *line, "data.images=null", "plan=true", capsys=capsys)
    assert (ended.code, "data.images=null: hydra.sweeper.rungs=[0.25, 1] are shares of it; use data.images=1000" in ended.err) == (
        2,
        True,
    ), ended.err
    ended = call("-m", "hydra/sweeper=search", rungs, *line, "data.images=400", "plan=true", capsys=capsys)
    assert ended.code == 0, ended.err
    assert "method.percentile: 99 to 100" in ended.out
    assert "each at data.images=100 first" in ended.out


def test_a_metric_that_no_record_has_is_refused_after_the_first(search: Command, results: Path) -> None:
    ended = search(*ALPHA, trials=3, metric="perplexty")
    assert (ended.code, counts(ended)) == (2, "1 done")
    assert "error: hydra.sweeper.metric=perplexty: did you mean perplexity?" in ended.err


def test_a_plan_says_what_a_search_would_do(search: Command, results: Path) -> None:
    plan = search(*ALPHA, "seed=0,1", "plan=true", trials=7, rungs="[0.5,1]")
    assert plan.code == 0
    *space, cost = plan.out.splitlines()
    assert space == ["plan: nothing is computed", "  alpha: 0 to 1", "  seed: 0, 1"]
    assert cost.startswith("at most 7 trials, each at data.windows=2 first, and in full only if it is among the best there; ")
    assert re.search(r"; a point is of about \d+ s$", cost)
    assert not (results / "sweeps").exists()
    assert records(results) == {}


def test_a_plain_sweep_names_the_search(command: Command) -> None:
    ended = command("-m", *ALPHA)
    assert ended.code == 2
    assert "alpha=interval(0,1): a sweep takes every value; hydra/sweeper=search chooses some of them" in ended.err


def test_without_optuna_it_says_what_installs_it(search: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "optuna" or name.startswith("sqbench.search"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = search(*ALPHA)
    assert (ended.code, ended.err) == (
        2,
        "error: hydra/sweeper=search: needs optuna, which is not installed; pip install 'sqbench[search]' installs it\n",
    )


def test_one_point_is_run_again_without_its_sweeper() -> None:
    given = ["alpha=0.5", "hydra/sweeper=search", "hydra.sweeper.trials=3", "plan=true"]
    assert sweep.own_overrides(given) == ["alpha=0.5"]


@pytest.mark.parametrize(("sweeper", "threads"), [({"jobs": 2}, 4), ({"jobs": 16}, 1), ({"max_batch_size": None}, 1)])
def test_the_cores_are_shared_by_as_many_as_run_at_once(
    sweeper: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 points to come only a batch is there."""
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(8)), raising=False)
    launcher = {"_target_": "JoblibLauncher", "n_jobs": -1}
    setting = OmegaConf.create({"mode": RunMode.MULTIRUN, "launcher": launcher, "sweeper": sweeper, "job": {"num": 3}})
    cfg = OmegaConf.create({"isolate": None, "limits": {}, "threads": None, "device": "auto"})
    share = _share(cfg, setting, 40)  # type: ignore[arg-type]
    assert share == Share(threads, 3)


@pytest.mark.slow
def test_an_interrupted_search_keeps_what_is_finished(
    tiny_folder: Path, text_file: Path, results: Path, tmp_path: Path, search: Command
) -> None:
    line = ["-m", "hydra/sweeper=search", "hydra.sweeper.trials=40", *tiny_run(tiny_folder, text_file, results, *ALPHA)]
    process = start(*line, cwd=tmp_path)
    try:
        assert wait_for(lambda: len(list(results.glob("runs/*/record.json"))) >= 2 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, err
    assert "interrupted: what is finished is kept, the same command goes on from here" in err
    done = len(records(results))
    assert 2 <= done < 40
    assert f"{done} done" in out
    assert counts(search(*ALPHA, trials=done + 1)) == f"1 done, {done} skipped"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param(name, marks=needs(name)) for name in ("cores", "slurm_local")])
def test_trials_of_a_batch_run_at_once_under_a_launcher(
    tiny_folder: Path, text_file: Path, results: Path, tmp_path: Path, launcher: str
) -> None:
    """The same trials as one after the other in one process, whoever computes them.

    A launcher needs a process of its own. submitit sets up logging, which closes what handlers of other libraries had open.
    """
    more = {"cores": "hydra.launcher.n_jobs=2", "slurm_local": "hydra.launcher.cpus_per_task=1"}[launcher]
    line = ["-m", "hydra/sweeper=search", "hydra.sweeper.trials=4", "hydra.sweeper.jobs=2", *ALPHA, "threads=1"]
    alone = tmp_path / "alone"
    for folder, launched in ((results, (f"hydra/launcher={launcher}", more)), (alone, ())):
        ended = run(*line, *launched, *tiny_run(tiny_folder, text_file, folder), cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert "4 done · records in " in ended.stdout
    assert study(results)["trials"] == study(alone)["trials"]
