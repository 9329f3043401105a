"""Layers in the page: every distinct column once, and no more than fit."""

from pathlib import Path
from typing import Any

import pytest
from examples import build, write

from sqbench.reporting.html import layers as module
from sqbench.reporting.html.layers import layers
from sqbench.reporting.html.results import read


def quantized(noise: float, alpha: float | None = None) -> dict[str, Any]:
    rows = [
        {"layer": name, "format": "int8", "weight_sqnr_db": 30.04 + noise, "input_sqnr_db": 20.0, "ratio": 12.3456} for name in "ab"
    ]
    return {"per_layer": rows, "groups": [] if alpha is None else [{"alpha": alpha, "readers": ["b"]}]}


def test_columns_are_shared_and_alphas_go_to_the_layers_that_read_a_group(results: Path) -> None:
    write(results, one := build("rtn", quantized=quantized(0)), two := build(alpha=0.3, quantized=quantized(1, 0.3)))
    write(results, build("minmax", status="failed"), build("awq", alpha=0.5, quantized={}))
    found = layers(read(results))
    points, columns = found["points"], found["columns"]
    assert set(points) == {one["point_id"], two["point_id"]}
    rtn, smooth = points[one["point_id"]], points[two["point_id"]]
    assert (rtn["label"], smooth["label"]) == ("rtn w8a8", "smoothquant w8a8 α=0.3")
    assert columns[rtn["layer"]] == ["a", "b"]
    assert columns[smooth["alpha"]] == [None, 0.3]
    assert "alpha" not in rtn
    assert (columns[rtn["weight_sqnr_db"]], columns[smooth["weight_sqnr_db"]]) == ([30.0, 30.0], [31.0, 31.0])
    assert columns[rtn["ratio"]] == [12.3, 12.3]
    assert all(rtn[name] == smooth[name] for name in ("layer", "format", "ratio", "input_sqnr_db"))
    assert found["left"] == 0


def test_what_does_not_fit_is_counted(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(results, *(build(alpha=place / 10, quantized=quantized(place)) for place in range(10)))
    monkeypatch.setattr(module, "BUDGET", 150)
    found = layers(read(results))
    assert 0 < len(found["points"]) < 10
    assert found["left"] == 10 - len(found["points"])
