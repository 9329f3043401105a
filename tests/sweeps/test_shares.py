"""What a launcher's settings mean for one point: its process, threads and GPU; and what brings a launcher that is missing."""

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from sqbench import run
from sqbench.console import composition
from sqbench.running.isolation import Share

CORES = 8
JOBLIB, LOCAL, SLURM, RAY, BASIC = (f"somewhere.{name}Launcher" for name in ("Joblib", "Local", "Slurm", "Ray", "Basic"))


def share(launcher, total=20, mode=RunMode.MULTIRUN, **keys):
    unlimited = {"seconds": None, "memory_gb": None}
    cfg = OmegaConf.create({"threads": None, "device": "auto", "isolate": None, "limits": unlimited, **keys})
    return run._share(cfg, OmegaConf.create({"mode": mode, "launcher": launcher, "sweeper": {}, "job": {"num": 3}}), total)


@pytest.mark.parametrize(("launcher", "total", "threads"), [
    ({"_target_": JOBLIB, "n_jobs": 2}, 20, 4),
    ({"_target_": JOBLIB, "n_jobs": 3}, 20, 2),
    ({"_target_": JOBLIB, "n_jobs": -1}, 20, 1),
    ({"_target_": JOBLIB, "n_jobs": -1}, 2, 4),  # fewer points than workers: nothing lies idle
    ({"_target_": JOBLIB, "n_jobs": 100}, 20, 1),
    ({"_target_": LOCAL, "cpus_per_task": 3}, 20, 3),
    ({"_target_": SLURM, "cpus_per_task": 3}, 20, 3),
    ({"_target_": RAY, "ray": {"remote": {"num_cpus": 2}}}, 20, 2),
    ({"_target_": RAY, "ray": {"remote": {"num_cpus": 0.5}}}, 20, 1),
])  # fmt: skip
def test_points_side_by_side_get_their_share_of_the_cores(monkeypatch, launcher, total, threads):
    monkeypatch.setattr(run.psutil.Process, "cpu_affinity", lambda self: list(range(CORES)), raising=False)
    assert share(launcher, total).threads == threads


def test_threads_is_heard_first():
    assert share({"_target_": JOBLIB, "n_jobs": 2}, threads=7) == Share(7, 3)


@pytest.mark.parametrize(("launcher", "device", "number"), [
    (JOBLIB, "auto", 3),
    (LOCAL, "cuda", 3),
    (JOBLIB, "cuda:1", None),  # the person's choice
    (JOBLIB, "cpu", None),
    (SLURM, "auto", None),  # the scheduler's
    (RAY, "cuda", None),
])  # fmt: skip
def test_a_point_gets_the_next_gpu_where_nobody_else_has_chosen(launcher, device, number):
    assert share({"_target_": launcher, "cpus_per_task": 2}, device=device) == Share(2, number)


def test_one_after_the_other_shares_the_process():
    assert share({"_target_": BASIC}) is None
    assert share({"_target_": JOBLIB, "n_jobs": 2}, isolate=False) is None
    assert share({"_target_": BASIC}, isolate=True) == Share()
    assert share({"_target_": BASIC}, limits={"seconds": 5.0, "memory_gb": None}) == Share()  # only a child can be ended


@pytest.mark.parametrize(("name", "extra"), [
    ("joblib", "parallel"), ("submitit_slurm", "slurm"), ("ray", "ray"), ("rays", None), ("ray_aws", None), ("cluster", None),
])  # fmt: skip
def test_a_missing_launcher_is_told_by_its_whole_name(name, extra):
    assert composition._plugin("hydra/launcher", name) == (f"; `pip install sqbench[{extra}]` brings it" if extra else "")
