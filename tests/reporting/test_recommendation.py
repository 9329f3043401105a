"""Which format to use: what satisfies the limits, which of them is chosen, and what the data cannot tell from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import build, write

from sqbench.errors import UserError
from sqbench.records.store import Store
from sqbench.reporting import significance
from sqbench.reporting.candidates import Candidates, candidates
from sqbench.reporting.html.results import read
from sqbench.reporting.recommendation import Wanted, facts, missing, nearest, recommend, sentence

OUTCOME = {"perplexity": {"kind": "perplexity", "column": "nll", "by": ["window"]}}
SPEED = {"tokens_per_s": 1.5, "decode_tokens_per_s": 0.9}


def losses(shift: float, seed: int, noise: float = 0.01) -> pd.DataFrame:
    """Of 60 windows: the float model's, and a point's that is worse by `shift` and some noise."""
    floats = np.linspace(2.0, 3.0, 60)
    drawn = np.random.default_rng(seed).normal(0, noise, 60)
    return pd.DataFrame({"window": range(60), "nll": floats + shift + drawn - drawn.mean(), "nll_fp": floats})


def put(results: Path, record: dict[str, Any], samples: pd.DataFrame | None = None) -> str:
    write(results, record)
    if samples is not None:
        samples.to_parquet(results / "runs" / record["point_id"] / "samples.parquet")
    return str(record["point_id"])


def timed(bits: str, speeds: dict[str, float], method: str = "rtn") -> dict[str, Any]:
    delta = {name: {"value": value, "low": value, "high": value, "level": 0.95, "n": 5} for name, value in speeds.items()}
    metrics = {name: 100.0 * value for name, value in speeds.items()}
    named = {"name": "latency", "resamples": 10000, "level": 0.95}
    return build(
        method,
        bits,
        metrics=metrics,
        delta=delta,
        baseline=dict.fromkeys(speeds, 100.0),
        identity__eval=named,
        identity__backend="int",
    )


@pytest.fixture
def folder(results: Path) -> Path:
    """Three points of 8 bits, two of them alike; one of 4 bits, smaller and worse; and the speed of 8 bits."""
    put(results, build("rtn", perplexity=15.6, outcomes=OUTCOME), losses(0.05, 0))
    put(results, build(alpha=0.5, perplexity=15.10, outcomes=OUTCOME), losses(0.0100, 1))
    put(results, build(alpha=0.8, perplexity=15.11, outcomes=OUTCOME), losses(0.0105, 2))
    four = build("awq", "w4a16", alpha=0.5, perplexity=17.0, outcomes=OUTCOME)
    four["metrics"]["weight_bytes"] = 0.6e8
    put(results, four, losses(0.13, 3))
    put(results, timed("w8a8", SPEED))
    return results


def found_in(folder: Path, device: str | None = None) -> Candidates:
    found = read(folder)
    study = next(study for study in found.studies if study.metric.name == "perplexity")
    return candidates(study, found.frame, found.records, Store(folder), "perplexity", device)


def names(found: Candidates, *places: int | None) -> list[str]:
    return ["-" if at is None else f"{found.items[at].bits} {found.items[at].name}" for at in places]


def test_without_limits_it_is_the_smallest_of_what_is_as_good_as_the_best(folder: Path) -> None:
    found = found_in(folder)
    chosen = recommend(found, Wanted())
    assert names(found, chosen.use, chosen.best, chosen.smallest, chosen.fastest) == [
        "w8a8 smoothquant α=0.5",
        "w8a8 smoothquant α=0.5",
        "w4a16 awq α=0.5",
        "w8a8 smoothquant α=0.5",
    ]
    assert chosen.ties is not None
    assert names(found, *(tie.at for tie in chosen.ties)) == ["w8a8 smoothquant α=0.8"]
    assert sum(chosen.left_out.values()) == 0


def test_a_smaller_point_that_is_tied_with_the_best_is_preferred(folder: Path) -> None:
    small = build("rtn", "w4a16", perplexity=15.12, outcomes=OUTCOME)
    small["metrics"]["weight_bytes"] = 0.5e8
    put(folder, small, losses(0.0110, 4))
    found = found_in(folder)
    chosen = recommend(found, Wanted())
    assert names(found, chosen.use, chosen.best) == ["w4a16 rtn", "w8a8 smoothquant α=0.5"]


@pytest.mark.parametrize(
    ("wanted", "use"),
    [
        (Wanted(max_mb=99), "w4a16 awq α=0.5"),
        (Wanted(max_mb=60), "w4a16 awq α=0.5"),  # at most is at most
        (Wanted(max_mb=59.9), "-"),
        (Wanted(max_loss=0.3), "-"),  # 0.240 itself is less, and its interval reaches to 0.340
        (Wanted(max_loss=0.341), "w8a8 smoothquant α=0.5"),
        (Wanted(min_speed=1.5), "w8a8 smoothquant α=0.5"),
        (Wanted(min_speed=1.0, speed="decode_tokens_per_s"), "-"),  # timed, and slower
        (Wanted(min_speed=0.1, max_mb=99), "-"),  # 4 bits were not timed
    ],
)
def test_limits_hold_at_the_far_end_and_what_is_unknown_does_not_satisfy(folder: Path, wanted: Wanted, use: str) -> None:
    found = found_in(folder)
    assert names(found, recommend(found, wanted).use) == [use]


def test_every_point_left_out_is_counted_once_with_its_reason(folder: Path) -> None:
    found = found_in(folder)
    wanted = Wanted(max_mb=99, min_speed=1.0)
    assert dict(recommend(found, wanted).left_out) == {"max_mb": 3, "min_speed (not timed)": 1}
    assert [bool(missing(one, wanted)) for one in found.items] == [True] * 4


def test_the_sentence_has_size_speed_and_loss(folder: Path) -> None:
    found = found_in(folder)
    (at,) = (at for at, one in enumerate(found.items) if one.alpha == "0.5" and one.bits == "w8a8")
    assert sentence(found, at) == (
        "8-bit with smoothquant α=0.5: 4.0 times smaller, prompts 1.50 times as fast, decoding 0.90 times as fast,"
        " perplexity +0.240 [0.140, 0.340]."
    )
    assert found.items[at].timed == "backend=int on cpu, timed with rtn"


def test_a_change_that_nobody_can_see_is_no_loss_and_says_what_would_have_been_seen(results: Path) -> None:
    put(results, build(alpha=0.5, perplexity=14.87, outcomes=OUTCOME, delta__perplexity__p=0.6, delta__perplexity__detectable=0.05))
    found = found_in(results)
    assert (
        facts(found, 0)[-1]
        == "no change that 16 examples could show (perplexity +0.010 [-0.090, 0.110]; 0.050 would have been found)"
    )


def test_how_many_windows_would_separate_two_points(folder: Path) -> None:
    """Simulated: with so many windows the same two points differ significantly four times in five."""
    found = found_in(folder)
    at = recommend(found, Wanted()).use
    assert at is not None
    ties = found.ties(at)
    assert ties
    needed = ties[0].needed
    assert needed is not None
    told = nearest(found, ties)
    assert told == f"About {needed:,} windows would tell it from w8a8 with smoothquant α=0.8."
    one, other = losses(0.0100, 1), losses(0.0105, 2)
    spread = float((one["nll"] - other["nll"]).std())
    rng, seen = np.random.default_rng(0), 0
    for _ in range(300):
        drawn = rng.normal(0.0005, spread, needed)
        seen += abs(drawn.mean()) / (drawn.std(ddof=1) / np.sqrt(needed)) > 1.96
    assert 0.7 < seen / 300 < 0.9


def test_points_without_samples_are_not_called_tied(results: Path) -> None:
    write(results, build("rtn", perplexity=15.6), build(alpha=0.5, perplexity=15.1))
    found = found_in(results)
    assert found.ties(0) is None
    assert recommend(found, Wanted()).ties is None


def test_the_speed_is_of_the_device_asked_for(folder: Path) -> None:
    assert any(one.speeds for one in found_in(folder, "cpu").items)
    assert not any(one.speeds for one in found_in(folder, "cuda").items)


def test_more_is_better_where_the_metric_says_so(results: Path) -> None:
    for method, value in (("smoothquant", 0.5), ("awq", 0.6)):
        delta = {"top1": {"value": value - 0.7, "low": value - 0.72, "high": value - 0.68, "level": 0.95, "n": 16}}
        write(results, build(method, alpha=0.5, metrics={"top1": value}, baseline={"top1": 0.7}, delta=delta))
    found = read(results)
    told = candidates(found.studies[0], found.frame, found.records, Store(results), "top1")
    assert names(told, recommend(told, Wanted()).best) == ["w8a8 awq α=0.5"]
    assert names(told, recommend(told, Wanted(max_loss=12.1)).best) == ["w8a8 awq α=0.5"]  # points of top-1
    assert recommend(told, Wanted(max_loss=11.9)).best is None


def test_an_unknown_direction_is_refused(results: Path) -> None:
    write(results, build(metrics={"score": 0.5}, baseline={"score": 0.7}, delta={}))
    found = read(results)
    with pytest.raises(UserError, match="score: whether more or less of it is better is not known"):
        candidates(found.studies[0], found.frame, found.records, Store(results), "score")


def test_a_point_that_ran_with_noise_too_is_one_candidate(results: Path) -> None:
    noise = {"runs": 5, "relative": 1e-6, "metrics": {}, "baseline": {}, "delta": {}}
    write(results, build(alpha=0.5), build(alpha=0.5, identity__noise=5, noise=noise), build("rtn", perplexity=15.6))
    assert [one.name for one in found_in(results).items] == ["rtn", "smoothquant α=0.5"]


def test_points_that_are_too_many_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "MOST_CELLS", 3)
    found = found_in(folder)
    assert len(found.items) == 4
    assert found.ties(0) is None
    assert recommend(found, Wanted()).use is not None
