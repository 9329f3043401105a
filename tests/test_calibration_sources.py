"""What calibrates: the data's own text, another, random tokens or no inputs at all, and how many, through the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import Ended, call, tiny_run

from sqbench.collect import CollectConfig, collect
from sqbench.records.store import Store
from sqbench.reporting.frame import results_frame

Command = Callable[..., Ended]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A text of other words."""
    path = tmp_path / "other.txt"
    path.write_text("".join(f"{number} * {number} = {number * number};\n" for number in range(2000)), encoding="utf-8")
    return path


def by_source(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every source, in order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(Store(results).records(), key=lambda record: record.identity["seed"]):
        source = set(results_frame([record])["source"]) - {""}
        found.setdefault(source.pop(), []).append(record)
    return found


@pytest.mark.slow
def test_every_source_is_a_point_and_a_row_of_a_table(command: Command, results: Path, other: Path) -> None:
    sources = ("calibration.source=data,random,weights", f"calibration.path=null,'{other}'")
    sweep = ("-m", "method=minmax", "bits=w8a8", *sources, "seed=0,1")
    ended = command(*sweep)
    assert ended.code == 0, ended.err
    assert "12 combinations are 8 points" in ended.err  # random tokens are the same whatever the text would have been
    found = by_source(results)
    assert {source: len(records) for source, records in found.items()} == {"data": 2, "other": 2, "random": 2, "weights": 2}
    loss = {source: records[0].metrics["kl_to_fp"] for source, records in found.items()}
    assert loss["data"] < loss["weights"]
    for source, (first, second) in found.items():
        assert first.metrics["kl_to_fp"] != second.metrics["kl_to_fp"], source  # a seed is a draw of each
        assert ("guessed" in first.quantized) == (source == "weights")
    assert "4 of 14 layers are a guess, that of N(0, 1)" in ended.err
    kept = list((results / "cache" / "calibration").glob("*-rows.safetensors"))
    assert len(kept) == 6  # weights tell their statistics in no time
    table, _ = collect(CollectConfig(str(results), rows=["method", "source"]))
    rows = [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| minmax")]
    assert rows == ["data", "other", "random", "weights"]
    assert "2 seeds" in table
    assert "8 skipped" in command(*sweep).out


@pytest.mark.slow
def test_weight_only_methods_calibrate_without_inputs_too(command: Command, results: Path) -> None:
    ended = command("-m", "method=awq,rtn", "bits=w4a16", "alpha=auto", "calibration.source=weights,random")
    assert ended.code == 0, ended.err
    losses = {
        (record.identity["method"]["name"], source): record.metrics["kl_to_fp"]
        for source, records in by_source(results).items()
        for record in records
    }
    assert losses["rtn", "weights"] == losses["rtn", "random"]  # it reads no statistics
    assert losses["awq", "weights"] != losses["awq", "random"]
    assert all("guessed" not in record.quantized for record in Store(results).records())


@pytest.mark.slow
def test_samples_are_windows_of_text(tiny_folder: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [item for item in tiny_run(tiny_folder, text_file, results, "method=minmax", "bits=w8a8") if "windows=" not in item]
    ended = call("-m", *run, "data.windows=4", "calibration.samples=2,6", capsys=capsys)
    assert ended.code == 0, ended.err
    assert "samples=6" in ended.out
    assert "1 skipped" in call("-m", *run, "data.windows=4", "calibration.windows=6", capsys=capsys).out  # the same in other words
    table, _ = collect(CollectConfig(str(results), rows=["samples"], columns=[]))
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["", "2", "6"]  # below the head: the float model, and both sizes


@pytest.mark.parametrize(("changes", "message"), [
    ("calibration.source=weigths", "calibration.source=weigths: did you mean weights? known: data, random, weights"),
    ("calibration.samples=0 calibration.windows=0", "calibration.samples=0: must be 1 or more"),
    ("calibration.samples=8", "calibration.samples=8: calibration.windows=4 says otherwise; use one of the two"),
    (
        "method=minmax bits=w8a8 bits.ops=full calibration.source=weights",
        "bits.ops=full: calibration.source=weights says nothing of what is between layers; use linear",
    ),
])  # fmt: skip
def test_what_cannot_calibrate_is_refused(command: Command, results: Path, changes: str, message: str) -> None:
    ended = command(*changes.split(" "))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: {message}\n"
    assert not list(results.glob("runs/*"))
