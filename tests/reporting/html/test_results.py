"""What is compared with what."""

from pathlib import Path

import pytest
from examples import build, write

from sqbench.reporting.html.comparison import comparison
from sqbench.reporting.html.results import read

OTHER = {"config__model": {"name": "opt"}, "identity__model": {"weights": "d" * 64, "dtype": "float32"}}


def test_a_study_holds_what_one_axis_may(results: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5), build("rtn", identity__seed=1), build("rtn", **OTHER))
    write(
        results,
        build("rtn", identity__eval={"name": "latency"}, metrics={"latency_ms": 9.0}, baseline={"latency_ms": 20.0}, delta={}),
    )
    found = read(results)
    assert [(study.label, study.metric.name, len(study.points)) for study in found.studies] == [
        ("smollm2 · pydoc · perplexity", "perplexity", 3),
        ("opt · pydoc · perplexity", "perplexity", 1),
        ("smollm2 · pydoc · latency", "latency_ms", 1),
    ]
    assert all((study.frame["method"] == "fp").any() for study in found.studies)  # each with its float baseline
    assert sorted(point for study in found.studies for point in study.points) == sorted(found.records)


def test_a_float_model_alone_is_a_study(results: Path) -> None:
    write(results, build("fp", "fp"))
    assert [study.points for study in read(results).studies] == [list(read(results).records)]


def test_what_was_compared_with_float_decides(results: Path) -> None:
    task = {"metrics": {"weight_bytes": 1e8, "blimp/acc": 0.7}, "baseline": {"weight_bytes": 4e8, "blimp/acc": 0.8}}
    write(results, build("rtn", **task, delta={"blimp/acc": {"value": -0.1, "low": -0.2, "high": 0.0, "level": 0.95, "n": 50}}))
    (study,) = read(results).studies
    assert study.metric.name == "blimp/acc"


def test_records_of_a_schema_that_nobody_knows_are_named_and_stand_apart(results: Path) -> None:
    write(results, build("rtn"), newer := build("minmax", schema=3))
    found = read(results)
    (unread,) = found.unread
    assert (unread.point_id, unread.schema, unread.status) == (newer["point_id"], "3", "ok")
    assert "update sqbench" in unread.told
    assert newer["point_id"] not in {row.point for row in comparison(found).rows}


def test_the_table_has_a_column_for_what_differs_and_says_what_is_shared(results: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5), build("rtn", **OTHER), build("awq", "w4a16", 0.5, status="failed"))
    table = comparison(read(results))
    titles = [title for title, _ in table.columns]
    assert titles == ["model", "method", "bits", "alpha", "perplexity", "change against float", *titles[-4:]]
    assert titles[-4:] == ["KL to float", "agreement", "weights, MB", "seconds"]
    assert "data pydoc" in table.shared
    assert "windows 16" in table.shared
    assert table.choices["status"] == ("done", "failed", "float")
    assert table.choices["method"] == ("fp", "rtn", "smoothquant", "awq")
    (row,) = [row for row in table.rows if row.keys["alpha"] == "0.5" and row.keys["status"] == "done"]
    cells = dict(zip(titles, row.cells, strict=True))
    assert (cells["alpha"].order, cells["perplexity"].text, cells["perplexity"].order) == (0.5, "15.10", 15.1)
    assert cells["change against float"].text == "+0.240 [0.140, 0.340]"
    assert cells["change against float"].order == pytest.approx(0.24)
