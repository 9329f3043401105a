"""Figures hold the numbers of the records, and names as they are."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import build, write

from sqbench.reporting.html import costs, lines, tradeoffs
from sqbench.reporting.html.figures import drawn
from sqbench.reporting.html.results import read

TAG = "<b onclick=alert(1)>m & n</b>"


def traces(make: Any) -> dict[str, dict[str, Any]]:
    """The named traces of a figure, from its JSON."""
    found = drawn("title", make)
    assert found.spec is not None, found.told
    data = json.loads(found.spec)["data"]
    return {trace["name"]: {key: plain(value) for key, value in trace.items()} for trace in data if "name" in trace}


def plain(value: Any) -> Any:
    """Plotly's base64 arrays as lists."""
    if isinstance(value, dict) and "bdata" in value:
        return np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
    return value


@pytest.fixture
def study(results: Path) -> Any:
    write(results, build("rtn", perplexity=16.0), build("rtn", "w4a16", perplexity=18.0, metrics__weight_bytes=6e7))
    for alpha, value in ((0.3, 15.4), (0.5, 15.1), ("auto", 15.2)):
        write(results, build(alpha=alpha, perplexity=value))
    for bits, milliseconds in (("w8a8", 40.0), ("w4a16", 60.0)):
        factor = {"value": 100.0 / milliseconds, "low": 1.0, "high": 3.0, "level": 0.95, "n": 5}
        speed = {"metrics": {"tokens_per_s": 10.0}, "baseline": {"tokens_per_s": 4.0}, "delta": {"tokens_per_s": factor}}
        write(results, build("rtn", bits, identity__eval={"name": "latency"}, identity__backend="int", **speed))
    found = read(results)
    return found, next(study for study in found.studies if study.metric.name == "perplexity")


def test_alphas_in_order_and_auto_stands_alone_at_their_right(study: Any) -> None:
    _, one = study
    figure, _ = lines.against_alpha(one, one.metric)
    line, auto = (trace for trace in figure.data if trace.name == "smoothquant w8a8")
    assert (list(line.x), list(line.y)) == ([0.3, 0.5], [15.4, 15.1])
    assert line.customdata[1] == "α 0.5: 15.10 [15.00, 15.20]"
    assert (list(line.text), line.showlegend) == (["", "smoothquant w8a8"], True)  # named at its end
    assert list(auto.y) == [15.2]
    assert auto.x[0] > 0.5
    assert (list(auto.text), auto.showlegend) == ([""], False)
    level = traces(lambda: lines.against_alpha(one, one.metric))["rtn w8a8"]
    assert level["y"] == [16.0, 16.0]


def test_bits_go_from_wide_to_narrow_at_the_best_alpha(study: Any) -> None:
    _, one = study
    found = traces(lambda: lines.against_bits(one, one.metric))
    assert [round(at) for at in found["rtn"]["x"]] == [0, 1]
    assert (found["rtn"]["y"], found["rtn"]["mode"]) == ([16.0, 18.0], "markers")  # nothing lies between two formats
    assert (found["smoothquant"]["y"], found["smoothquant"]["customdata"]) == (
        [15.1],
        ["w8a8 smoothquant α=0.5: 15.10 [15.00, 15.20]"],
    )


def test_the_front_of_bytes(study: Any) -> None:
    _, one = study
    found = traces(lambda: tradeoffs.against_bytes(one))
    assert found["none is better on both axes"]["x"] == [60.0, 100.0, 400.0]
    assert found["none is better on both axes"]["y"] == [18.0, 15.1, 14.86]


def test_speeds_come_from_the_formats_that_were_timed(study: Any) -> None:
    results, one = study
    figure, told = tradeoffs.against_speed(results, one)
    found = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert found["rtn w8a8"] == ([2.5], [16.0])
    assert found["smoothquant w8a8"][0] == [2.5, 2.5, 2.5]  # of the same format, timed with another method
    assert found["rtn w4a16"] == ([pytest.approx(100 / 60)], [18.0])
    assert found["float"] == ([1.0], [14.86])
    assert found["none is better on both axes"] == ([1.0, 2.5], [14.86, 15.1])
    assert "times as fast as float (prompts)" in figure.layout.xaxis.title.text
    assert "Speeds are those of prompts, of the same format, backend=int on cpu." in told


def test_seconds_are_of_the_records(study: Any) -> None:
    results, one = study
    bar = traces(lambda: costs.seconds(results, one))["load"]
    own = dict(zip(bar["y"], bar["x"], strict=True))
    assert own.pop("once for all points") == 0.0
    assert set(own.values()) == {1.0}
    assert list(own)[-1] == "rtn w8a8"  # Plotly draws bars from below
    assert traces(lambda: costs.memory(results, one)) == {}  # one unnamed series


def test_what_points_share_is_a_row_of_its_own(results: Path) -> None:
    for alpha, spent in ((0.3, 9.0), (0.5, 0.1)):
        write(results, build(alpha=alpha, cost__seconds={"load": 1.0, "calibrate": spent, "quantize": 2.0, "total": 3.0 + spent}))
    found = read(results)
    bar = traces(lambda: costs.seconds(found, found.studies[0]))["calibrate"]
    assert dict(zip(bar["y"], bar["x"], strict=True)) == {
        "smoothquant w8a8 α=0.5": 0.0,
        "smoothquant w8a8 α=0.3": 0.0,
        "once for all points": pytest.approx(9.1),
    }


def test_what_cannot_be_drawn_says_what_would_help(results: Path) -> None:
    write(results, build("rtn"))
    found = read(results)
    one = found.studies[0]
    for make, hint in (
        (lambda: lines.against_alpha(one, one.metric), "alpha=0.3,0.5,0.8"),
        (lambda: tradeoffs.against_speed(found, one), "eval=latency"),
    ):
        figure = drawn("title", make)
        assert figure.spec is None
        assert hint in figure.told


def test_tags_in_names_stay_text(results: Path) -> None:
    for alpha in (0.3, 0.5):
        write(results, build(alpha=alpha, identity__scheme={"name": TAG, "weights": None, "activations": None}))
    found = read(results)
    one = found.studies[0]
    for make in (
        lambda: lines.against_alpha(one, one.metric),
        lambda: lines.against_bits(one, one.metric),
        lambda: tradeoffs.against_bytes(one),
        lambda: costs.seconds(found, one),
    ):
        spec = drawn("title", make).spec
        assert spec is not None
        assert "<b" not in spec
        assert "&lt;b onclick" in spec
