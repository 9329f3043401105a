"""The cost model: rates learnt from finished points, what is shared paid once, and the longest point first on many workers."""

from types import SimpleNamespace
from typing import Any

import examples
import psutil
import pytest

from sqbench.models.base import Extent
from sqbench.records.outcome import Outcome
from sqbench.records.record import Record
from sqbench.sweeps import cost
from sqbench.sweeps.cost import Cost, History, wall_clock
from sqbench.sweeps.plan import summary, verdict

STAGES = {"load": 2.0, "baseline": 10.0, "calibrate": 20.0, "quantize": 4.0, "lower": 1.0, "evaluate": 8.0, "total": 46.0}
CACHED = STAGES | {"load": 0.1, "baseline": 0.01, "calibrate": 0.2, "total": 14.31}


def finished(seconds: dict[str, float], **changes: Any) -> Record:
    return examples.made(alpha=0.5, cost__seconds=seconds, **changes)


def point(size: int | None = None, **changes: Any) -> Any:
    """A point of which nothing else is known than the bytes of its weights."""
    extent = None if size is None else Extent(size // 4, 0.0, 0, 0, 0)
    identity = examples.made(**{"alpha": 0.3, **changes}).identity
    return SimpleNamespace(identity=identity, source=SimpleNamespace(extent=lambda: extent))


@pytest.fixture(autouse=True)
def _nothing_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished points alone tell, unless a test says what is foreseen."""
    monkeypatch.setattr(cost, "estimate", lambda point: None)


def test_a_point_of_the_same_kind_costs_its_own_stages_and_finds_what_is_shared() -> None:
    told = History([finished(STAGES), finished(CACHED, identity__seed=1)]).predict(point())
    assert told is not None
    assert told.seconds == pytest.approx(4 + 1 + 8 + (1.0 + 0.0) / 2, abs=0.51)  # the rest is what no stage accounts for
    assert told.load == 2.0
    assert told.shared == {}
    assert told.memory == 2.0e9


def test_other_data_has_its_own_float_result_and_works_in_proportion() -> None:
    told = History([finished(STAGES)]).predict(point(identity__data={"text": "d" * 64, "window": 512, "windows": 64}))
    assert told is not None
    assert sorted(told.shared.values()) == [40.0]  # 10 s for 16 windows; calibration is there
    assert told.seconds == pytest.approx(4 + 1 + 4 * 8 + 1)
    calibrated = History([finished(CACHED), finished(STAGES)]).predict(point(identity__calibration={"windows": 8, "seed": 1}))
    assert calibrated is not None
    assert sorted(calibrated.shared.values()) == [5.0]  # as told by the one that did not find it


def test_what_a_method_takes_is_told_by_that_method_first() -> None:
    slow = finished(STAGES | {"quantize": 100.0, "total": 142.0}, method="awq", bits="w4a16")
    history = History([finished(STAGES), slow])
    awq, other = history.predict(point(method="awq", bits="w4a16")), history.predict(point(method="gptq", bits="w4a16"))
    assert awq is not None
    assert other is not None
    assert awq.seconds == pytest.approx(100 + 1 + 8 + 1)
    assert other.seconds == pytest.approx((4 + 100) / 2 + 1 + 8 + 1)


def test_another_tool_and_another_part_of_a_recipe_are_other_methods() -> None:
    """AutoRound trains for an hour, and torchao rounds in seconds."""
    trains = {"name": "peer", "tool": "auto-round", "arguments": {"iters": 200}}
    rounds = {"name": "peer", "tool": "torchao", "arguments": None}
    slow = finished(STAGES | {"quantize": 4000.0, "total": 4042.0}, identity__method=trains)
    fast = finished(STAGES | {"quantize": 5.0, "total": 47.0}, identity__method=rounds)
    history = History([slow, fast])
    for method, seconds in ((trains, 4000.0), (rounds, 5.0)):
        told = history.predict(point(identity__method=method))
        assert told is not None
        assert told.seconds == pytest.approx(seconds + 1 + 8 + 1)
    recipe = {"transforms": [], "ranges": "minmax", "rounding": "gptq", "corrections": []}
    learns = finished(STAGES | {"quantize": 90.0, "total": 132.0}, method="rtn", identity__recipe=recipe)
    told = History([finished(STAGES, method="rtn"), learns]).predict(point(method="rtn", identity__recipe=recipe))
    assert told is not None
    assert told.seconds == pytest.approx(90 + 1 + 8 + 1)


def test_a_search_is_told_by_searches() -> None:
    searching = finished(STAGES | {"quantize": 60.0, "total": 102.0}, identity__method={"name": "smoothquant", "alpha": "auto"})
    history = History([finished(STAGES), searching])
    given, auto = history.predict(point()), history.predict(point(alpha="auto"))
    assert given is not None
    assert auto is not None
    assert auto.seconds - given.seconds == pytest.approx(56.0)


def test_another_model_is_scaled_by_its_size_where_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=500_000_000))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    history = History([finished(STAGES)])
    big = history.predict(point(size=1_600_000_000, identity__model={"weights": "e" * 64, "dtype": "float32"}))
    assert big is not None
    assert big.seconds == pytest.approx(4 * (4 + 1 + 8) + 1)
    assert big.memory == 0.5e9 + 4 * 1.5e9  # what a process holds without a model does not grow
    assert history.predict(point(identity__model={"weights": "e" * 64, "dtype": "float32"})) is None


def test_nothing_is_learnt_from_failures_or_another_evaluation() -> None:
    failed = finished(STAGES, status="failed", error={"type": "E", "message": "m", "traceback": ""})
    latency = finished(STAGES, identity__eval={"name": "latency"})
    assert History([failed, latency]).predict(point()) is None


def test_on_workers_the_shared_comes_first_and_the_longest_point_next() -> None:
    costs = [Cost(seconds, load=1.0, shared={"calibration": 10.0}) for seconds in (2.0, 8.0, 4.0, 6.0)]
    assert wall_clock(costs, 1) == 10 + 1 + 20
    assert wall_clock(costs, 2) == 10 + 1 + 10
    assert wall_clock(costs, 4) == wall_clock(costs, 9) == 10 + 1 + 8
    assert wall_clock([], 4) == 0.0
    said = summary(costs, 1)
    assert said.startswith("about 31 s, of which 10 s once: calibration and the float model; with more workers")
    assert "2: 21 s, 4: 19 s" in said
    assert "; and 1 point of unknown cost (no finished" in said
    assert summary([], 2).startswith("2 points of unknown cost")


def test_the_forecast_is_judged_by_the_points_that_were_computed() -> None:
    outcomes = [
        Outcome("a", "done", [], 10.0),
        Outcome("b", "done", [], 30.0),
        Outcome("c", "skipped", [], 0.0),
        Outcome("d", "failed", [], 5.0),
        Outcome("e", "done", [], 99.0),
    ]
    said = verdict({"a": 12.0, "b": 20.0, "c": 7.0, "d": 7.0}, outcomes)
    assert said == "predicted 32 s for 2 points, they took 40 s (-20%); farthest off: b, predicted 20 s, took 30 s"
    assert verdict({"c": 7.0}, outcomes) is None


def foresees(monkeypatch: pytest.MonkeyPatch, held: int = 3_000_000_000, **seconds: float) -> None:
    stages = {"load": 3.0, "baseline": 10.0, "calibrate": 20.0, "quantize": 2.0, "lower": 1.0, "evaluate": 4.0, **seconds}
    monkeypatch.setattr(cost, "estimate", lambda point: (stages, held))


def test_without_any_finished_point_the_size_of_the_model_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    foresees(monkeypatch)
    told = History([]).predict(point(size=400))
    assert told is not None
    assert (told.seconds, told.load, sorted(told.shared.values())) == (2 + 1 + 4, 3.0, [10.0, 20.0])
    assert told.memory is not None
    assert told.memory > 3_000_000_000
    assert told.basis == "the size of the model"
    assert "estimated from the size of the model: 1 point" in summary([told], 0)


def test_a_search_is_not_told_by_another_method_but_foreseen_at_the_speed_of_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """One finished point of round-to-nearest, twice as slow as foreseen: a search is 600 s at that speed, not its 4 s."""
    foresees(monkeypatch, quantize=300.0)
    history = History([finished(STAGES, method="rtn", bits="w4a16")])
    told = history.predict(point(method="awq", bits="w4a16", alpha="auto"))
    assert told is not None
    assert told.seconds == pytest.approx(2 * 300 + 1 + 8 + 1)
    assert told.basis == "1 finished point like it, its method from the size of the model"
    again = history.predict(point(method="rtn", bits="w4a16", identity__seed=1))
    assert again is not None
    assert again.seconds == pytest.approx(4 + 1 + 8 + 1)
    assert again.basis == "1 finished point like it"


def test_the_float_model_has_no_method_of_its_own_to_work_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "estimate", lambda point: ({"load": 3.0, "baseline": 10.0}, 1))
    told = History([finished(STAGES)]).predict(point(method="fp", bits="fp", alpha=None))
    assert told is not None
    assert told.basis == "1 finished point like it"
    assert told.seconds == pytest.approx(1 + 8 + 1)  # lower and evaluate, as the record has them, and no quantize


def test_noise_evaluates_again_and_is_no_habit_of_other_points() -> None:
    noisy = finished(STAGES | {"noise": 60.0, "total": 106.0}, identity__noise=5)
    history = History([finished(STAGES), noisy])
    plain, again = history.predict(point()), history.predict(point(identity__noise=3))
    assert plain is not None
    assert again is not None
    assert again.seconds == pytest.approx(plain.seconds + 3 * 8)
    assert sorted(again.shared.values()) == [30.0]  # the float model three times more
    assert plain.shared == {}


def test_noise_of_a_model_never_seen_is_foreseen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "estimate", lambda point: ({"load": 1.0, "baseline": 2.0, "calibrate": 3.0, "evaluate": 4.0}, 10))
    plain, noisy = History([]).predict(point()), History([]).predict(point(identity__noise=5))
    assert plain is not None
    assert noisy is not None
    assert noisy.seconds == plain.seconds + 20
    assert sum(noisy.shared.values()) == sum(plain.shared.values()) + 10
