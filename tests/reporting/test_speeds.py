"""Tables of speeds: every point beside the float model that took turns with it."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from examples import write
from rich.console import Console

from sqbench.records.record import Record
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.html.comparison import comparison
from sqbench.reporting.html.results import read
from sqbench.reporting.latex import to_latex, to_paper
from sqbench.reporting.selection import select
from sqbench.reporting.series import curves
from sqbench.reporting.tables import to_long_csv, to_markdown, to_wide_csv
from sqbench.reporting.terminal import sweep_table


@pytest.fixture
def records(make_record: Any) -> list[Record]:
    """A bfloat16 float model and two formats, each timed beside float32 at another minute; float32 was no point itself."""

    def timed(method: str, bits: str, speed: float, floating: float, **changes: Any) -> dict[str, Any]:
        factor = {"value": speed / floating, "low": 0.9 * speed / floating, "high": 1.1 * speed / floating, "level": 0.95, "n": 5}
        record: dict[str, Any] = make_record(
            method,
            bits,
            identity__eval={"name": "latency", "repetitions": 5, "beside": "float32"},
            metrics={"tokens_per_s": speed, "resident_bytes": 1e8},
            baseline={"tokens_per_s": floating, "resident_bytes": 4e8},
            delta={"tokens_per_s": factor},
            **changes,
        )
        return record

    return [
        timed("rtn", "w8a8", 200.0, 100.0),
        timed("rtn", "w4a16", 150.0, 120.0),
        timed("fp", "fp", 55.0, 110.0, identity__model__dtype="bfloat16"),
    ]


@pytest.fixture
def grid(records: list[Record]) -> Grid:
    return lay_out(results_frame(records), ["method", "bits"], [], "tokens_per_s")


ROWS = {
    ("fp", "fp", "float32"): "110.0",  # the float line: the median of the float models
    ("fp", "fp", "bfloat16"): "55.0 (x0.50 [0.45, 0.55], float 110.0)",
    ("rtn", "w8a8", "int8 sym channel"): "200.0 (x2.00 [1.80, 2.20], float 100.0)",
    ("rtn", "w4a16", "int4 asym group 64"): "150.0 (x1.25 [1.12, 1.38], float 120.0)",
}


def test_speed_factor_and_float_model_agree_in_every_row(grid: Grid) -> None:
    text = to_markdown(grid)
    for labels, cell in ROWS.items():
        (row,) = [line for line in text.splitlines() if [*labels] == [part.strip() for part in line.split("|")[1:4]]]
        assert f"| {cell}" in row
    assert "float is the speed of that float model, which took turns with the point; a factor is the median over turns" in text
    for style in (to_latex, to_paper):
        assert "x2.00 [1.80, 2.20], float 100.0" in style(grid)


def test_csv_has_the_factor_its_interval_and_the_float_model(records: list[Record], grid: Grid) -> None:
    wide = pd.read_csv(io.StringIO(to_wide_csv(grid)), na_values="--").set_index(["method", "bits", "weights"])
    row = wide.loc["rtn", "w8a8", "int8 sym channel"]
    names = ["tokens_per_s", "tokens_per_s factor", "tokens_per_s low", "tokens_per_s high", "tokens_per_s float"]
    assert row[names].tolist() == [200.0, 2.0, 1.8, 2.2, 100.0]
    assert wide.loc["fp", "fp", "float32"][names[1:]].isna().all()
    long = pd.read_csv(io.StringIO(to_long_csv(results_frame(records))))
    assert sorted(long["float"].dropna()) == [100.0, 110.0, 120.0]


def test_the_terminal_and_the_report_have_a_column_for_the_float_model(records: list[Record], results: Path) -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(sweep_table(records))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["rtn", "w8a8", "200.0", "100.0", "x2.00"] in [row[:5] for row in rows]
    assert ["fp", "fp", "55.0", "110.0", "x0.50"] in [row[:5] for row in rows]
    assert ["fp", "fp", "110.0", "--", "--"] in [row[:5] for row in rows]
    assert "weights=bfloat16" in out.getvalue()
    write(results, *records)
    table = comparison(read(results))
    place = [title for title, _ in table.columns].index("float beside it")
    assert {row.cells[place].text for row in table.rows} == {"", "100.0", "110.0", "120.0"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_float_model_in_another_dtype_is_a_point(records: list[Record]) -> None:
    frame = results_frame(records)
    chosen = select(frame, bits=["w8a8"])
    assert set(zip(chosen["method"], chosen["weights"], strict=True)) == {("fp", "float32"), ("rtn", "int8 sym channel")}
    level, lines = curves(lay_out(frame, ["method", "bits", "alpha"], [], "tokens_per_s"))
    assert level == 110.0
    assert sorted((line.method, line.values[0]) for line in lines) == [("fp", 55.0), ("rtn", 150.0), ("rtn", 200.0)]


def test_other_metrics_have_no_such_column(make_record: Any) -> None:
    frame = results_frame([make_record("rtn")])
    assert "float" not in to_long_csv(frame).splitlines()[0].split(",")
