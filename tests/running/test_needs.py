"""What a sweep's points read together is collected by its first calibration, in one pass, in whatever process it runs."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended

from sqbench import api
from sqbench.formats.scheme import Scheme
from sqbench.ranges.percentile import Percentile
from sqbench.recipes.configured import method_names, named
from sqbench.running import needs
from sqbench.running.resolved import Resolved, resolve
from sqbench.statistics import ALWAYS, COLLECTORS
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.outliers import NEEDS as REPORT

Command = Callable[..., Ended]
BOTH = ("-m", "method=minmax,percentile", "bits=w8a8")


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of the second point that reads full matrices."""
    before = Percentile.needs
    monkeypatch.setattr(Percentile, "needs", lambda self, scheme: before(self, scheme) | {"gram"})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """What every pass over the model collected in this process."""
    found: list[frozenset[str]] = []
    module = importlib.import_module("sqbench.calibration.observe")  # the package has a function of that name
    before = module._pass

    def counted(*args: object) -> dict[str, InputStatistics]:
        found.append(frozenset().union(*args[2].values()))  # type: ignore[attr-defined]
        return before(*args)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "_pass", counted)
    return found


def matrices(results: Path) -> list[Path]:
    return list(results.glob("cache/calibration/*-gram/*.safetensors"))


def point(*overrides: str) -> Resolved:
    return resolve(api.configure("model=smollm2_135m", *overrides))


def test_methods_say_what_they_read() -> None:
    scheme = point("method=minmax", "bits=w8a8").scheme
    dynamic = point("method=minmax", "bits=w8a8_dynamic").scheme
    methods = {name: named(name) for name in method_names()}
    assert {name for name, method in methods.items() if "histogram" in method.needs(scheme)} >= {
        *("percentile", "mse", "histogram", "entropy", "qat_lsq"),
    }
    assert not any("histogram" in method.needs(dynamic) for method in methods.values())
    for name in ("ema_minmax", "mean_minmax"):
        assert methods[name].needs(scheme) == {"averages"}
    assert methods["gptq"].needs(scheme) == {"gram"}
    for name in ("minmax", "rtn", "smoothquant", "qat", "fp"):
        assert methods[name].needs(scheme) == frozenset(), name
    assert methods["awq"].needs(scheme) == {"blocks"}
    assert named("awq", clip=False).needs(scheme) == methods["awq"].needs(Scheme("fp")) == frozenset()
    assert named("qat_lsq", start="mean").needs(scheme) == frozenset()


def test_a_point_reads_what_its_report_reads() -> None:
    assert needs.needs_of(point("method=rtn")) == REPORT
    assert needs.needs_of(point("method=fp")) == frozenset()


def test_the_first_calibration_of_a_sweep_is_the_only_one(
    command: Command, results: Path, hungry: None, passes: list[frozenset[str]]
) -> None:
    assert command(*BOTH).code == 0
    assert passes == [frozenset(COLLECTORS)]
    assert len(matrices(results)) == 8


def test_points_of_their_own_collect_what_is_missing(
    command: Command, results: Path, hungry: None, passes: list[frozenset[str]]
) -> None:
    assert command("method=minmax", "bits=w8a8").code == 0
    assert not matrices(results)
    assert command("method=percentile", "bits=w8a8").code == 0
    assert passes == [ALWAYS | REPORT, {"gram"}]


def test_weights_that_tell_their_statistics_share_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(needs.SHARED, "blocks,gram")
    for source, found in (("data", REPORT | {"gram"}), ("weights", REPORT)):
        assert needs.collected_for(point("method=minmax", f"calibration.source={source}")) == found


@pytest.mark.slow  # other processes import torch
@pytest.mark.parametrize("how", [("isolate=true",), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_processes_of_points_hear_what_all_read(command: Command, results: Path, hungry: None, how: tuple[str, ...]) -> None:
    assert command(*BOTH, *how).code == 0  # only this process knows that the method is hungry
    assert len(matrices(results)) == 8


@pytest.mark.slow  # other processes import torch
def test_workers_know_their_own_sweep(command: Command, results: Path, hungry: None) -> None:
    """joblib keeps workers between sweeps of one process, and a worker keeps the environment that it started with."""
    at_once = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert command("-m", "method=minmax,rtn", "bits=w6a6", *at_once).code == 0
    assert not matrices(results)
    assert command(*BOTH, *at_once).code == 0
    assert len(matrices(results)) == 8
