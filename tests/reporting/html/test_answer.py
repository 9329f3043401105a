"""The best of every bit-width, and what is not significantly worse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from examples import build, write

from sqbench.reporting.html.answer import answer
from sqbench.reporting.html.results import read

OUTCOME = {"perplexity": {"kind": "perplexity", "column": "nll", "by": ["window"]}}


def losses(shift: float, seed: int) -> pd.DataFrame:
    """Of 60 windows: the float model's, and a point's that is worse by `shift` and some noise."""
    floats = np.linspace(2.0, 3.0, 60)
    noise = np.random.default_rng(seed).normal(0, 0.01, 60)
    return pd.DataFrame({"window": range(60), "nll": floats + shift + noise - noise.mean(), "nll_fp": floats})


def test_the_best_and_those_beside_it(results: Path) -> None:
    points = [
        (build("rtn", perplexity=15.6, outcomes=OUTCOME), losses(0.05, 0)),
        (build(alpha=0.5, perplexity=15.1, outcomes=OUTCOME), losses(0.0100, 1)),
        (build(alpha=0.8, perplexity=15.11, outcomes=OUTCOME), losses(0.0101, 2)),
    ]
    for record, samples in points:
        write(results, record)
        samples.to_parquet(results / "runs" / record["point_id"] / "samples.parquet")
    write(results, build("minmax", "w4a16", perplexity=17.0), build("rtn", "w4a16", status="failed"))  # before smoothquant
    found = read(results)
    told = answer(found, found.studies[0])
    assert told.floating == "14.86"
    wide, narrow = told.best
    assert (wide.bits, wide.name, wide.value, wide.change) == ("w8a8", "smoothquant α=0.5", "15.10", "+0.240 [0.140, 0.340]")
    assert wide.points == (points[1][0]["point_id"],)
    assert wide.beside == ("w8a8 smoothquant α=0.8",)  # and not rtn
    assert (narrow.bits, narrow.words, narrow.name, narrow.tried, narrow.beside) == ("w4a16", "4-bit weights", "minmax", 1, None)
    assert (told.failed, told.megabytes) == (1, "400.0")
    assert told.use.startswith("8-bit with smoothquant α=0.5: 4.0 times smaller")


@pytest.mark.parametrize(("metric", "best"), [("top1", "awq α=0.5"), ("perplexity", "smoothquant α=0.5")])
def test_better_is_more_or_less_as_the_metric_has_it(results: Path, metric: str, best: str) -> None:
    for method, value in (("smoothquant", 0.5), ("awq", 0.6)):
        delta = {metric: {"value": value - 0.7, "low": None, "high": None, "level": None, "n": 16}}
        write(results, build(method, alpha=0.5, metrics={metric: value}, baseline={metric: 0.7}, delta=delta))
    found = read(results)
    (told,) = answer(found, found.studies[0]).best
    assert told.name == best


def test_without_a_known_direction_there_is_no_best_and_it_says_why(results: Path) -> None:
    for method, value in (("smoothquant", 0.5), ("awq", 0.6)):
        write(results, build(method, alpha=0.5, metrics={"score": value}, baseline={"score": 0.7}, delta={}))
    found = read(results)
    told = answer(found, found.studies[0])
    assert told.best == ()
    assert told.unranked == "There is no best: score: whether more or less of it is better is not known."
