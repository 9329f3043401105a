"""What is compared with what."""

from pathlib import Path

import pytest
from examples import build, write

from sqbench.reporting.html.comparison import comparison
from sqbench.reporting.html.results import read
from sqbench.storage import canonical_json, digest

OTHER = {"config__model": {"name": "opt"}, "identity__model": {"weights": "d" * 64, "dtype": "float32"}}


def test_a_study_holds_what_one_axis_may(results: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5), build("rtn", seed=1, identity__seed=1), build("rtn", **OTHER))
    write(
        results,
        build("rtn", identity__eval={"name": "latency"}, metrics={"latency_ms": 9.0}, baseline={"latency_ms": 20.0}, delta={}),
    )
    found = read(results)
    assert [(study.label, study.metric, len(study.points)) for study in found.studies] == [
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
    assert study.metric == "blimp/acc"


def test_records_of_other_schemas_are_marked_or_shown_apart(results: Path) -> None:
    write(results, build("rtn"), old := build("minmax", schema=0))
    strange = {"schema": 0, "point_id": "f" * 12, "status": "ok", "metrics": {"perplexity": 15.5}}
    path = results / "runs" / strange["point_id"] / "record.json"
    path.parent.mkdir()
    path.write_text(canonical_json({**strange, "checksum": digest(strange)}), encoding="utf-8")
    found = read(results)
    (unread,) = found.unread
    assert (unread.point_id, unread.schema, unread.told) == ("f" * 12, "0", "perplexity 15.50")
    marks = {row.point: row.old for row in comparison(found).rows}
    assert marks[old["point_id"]] == "0"
    assert sorted(marks.values()) == ["", "", "0"]  # the baseline and the other are ours


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
