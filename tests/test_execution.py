"""`backend=int` through the command line: the numbers of the simulation, and a record that says what ran how."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended

from sqbench.execution import compiler
from sqbench.records.store import Store

Command = Callable[..., Ended]


@pytest.mark.slow
def test_both_backends_end_to_end(command: Command, results: Path) -> None:
    ended = command("-m", "method=smoothquant", "alpha=0.5", "bits=w8a8_dynamic,w8a8,w8a16,w4a16", "backend=sim,int")
    assert ended.code == 0, ended.err
    records = {(r.identity["scheme"]["name"], r.identity["backend"]): r for r in Store(results).records()}
    assert len(records) == 8
    for (bits, backend), record in records.items():
        execution = record.quantized["execution"]
        layers = [layer for entry in execution for layer in entry["layers"]]
        assert sorted(layers) == sorted(entry["layer"] for entry in record.quantized["per_layer"])
        if backend == "sim":
            assert {entry["kernel"] for entry in execution} == {"simulated"}
            continue
        simulated = records[bits, "sim"]
        assert record.metrics["perplexity"] == pytest.approx(simulated.metrics["perplexity"], rel=1e-3)
        assert record.metrics["weight_bytes"] == simulated.metrics["weight_bytes"]
        assert all(entry["reason"] for entry in execution if entry["kernel"] == "simulated")


def test_the_float_model_is_one_point_under_both_backends(command: Command, results: Path) -> None:
    assert command("-m", "method=fp", "backend=sim,int").code == 0
    assert len(list(Store(results).records())) == 1


@pytest.mark.slow
def test_without_a_compiler_the_numbers_are_the_same(command: Command, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQBENCH_NATIVE", "0")
    monkeypatch.setattr(compiler, "load", compiler.load.__wrapped__)  # as in a new process
    ended = command("-m", "method=rtn", "bits=w4a16", "backend=sim,int")
    assert ended.code == 0
    sim, executed = sorted(Store(results).records(), key=lambda record: record.identity["backend"] == "int")
    assert executed.metrics == sim.metrics
    (entry,) = executed.quantized["execution"]
    assert entry["kernel"] == "simulated"
    assert "SQBENCH_NATIVE" in entry["reason"]
    assert "14 of 14 layers are simulated" in ended.err
