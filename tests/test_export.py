"""`python -m sqbench.export` from end to end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended

from sqbench import export
from sqbench.exports.targets import TARGETS
from sqbench.records.store import Store
from sqbench.running import stages

Command = Callable[..., Ended]


@pytest.fixture
def point(command: Command, results: Path) -> str:
    assert command("method=smoothquant", "bits=w8a8_dynamic", "bits.as=compressed-tensors").code == 0
    (record,) = Store(results).records()
    return record.point_id


def test_a_point_is_exported_proven_and_judged_like_any_checkpoint(
    command: Command, point: str, results: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert export.main([point[:6], f"results_dir={results}", f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert f"{point} is in {out}" in told
    assert "checked by transformers" in told
    proof = json.loads((out / "sqbench.json").read_text())["proof"]
    assert proof["largest"] <= 1e-4 * proof["scale"]
    card = (out / "README.md").read_text()
    for words in (point, "smoothquant", "w8a8_dynamic", "python -m sqbench.run", "Checked by transformers", "sha256"):
        assert words in card
    assert command("model=checkpoint", f"model.name={out}", f"model.parent={tiny_folder}").code == 0
    stored, made = sorted(Store(results).records(), key=lambda record: record.identity["method"]["name"])
    assert stored.metrics == made.metrics
    assert stored.delta == made.delta


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "out: needs a folder"),
        (
            ("out={tmp}", "format=onyx"),
            "format=onyx: did you mean onnx? known: compressed-tensors, gguf, onnx, openvino, ",
        ),
        (("out={tmp}", "form=gguf"), "form"),
        (("out={results}",), "is there and not empty; use another folder, or force=true"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    point: str, results: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [word.format(tmp=tmp_path / "out", results=results) for word in words]
    assert export.main([point, f"results_dir={results}", *told]) == 2
    assert message in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_before_weights_are_computed(
    point: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(stages, "load", pytest.fail)
    assert export.main([point, f"results_dir={results}", f"out={tmp_path / 'out'}", "format=openvino"]) == 2
    assert "format=openvino: needs openvino, which is not installed; pip install 'sqbench[runtimes]'" in capsys.readouterr().err


def test_the_help_names_every_format() -> None:
    assert tuple(TARGETS) == export.FORMATS


def test_help_and_a_missing_point(results: Path, point: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--help"]) == 0
    assert "sqbench.export ID out=FOLDER" in capsys.readouterr().out
    assert export.main([]) == 2
    assert export.main(["zzz", f"results_dir={results}", "out=x"]) == 2
    assert "zzz" in capsys.readouterr().err


def test_without_proof_the_card_says_so(point: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([point, f"results_dir={results}", f"out={tmp_path / 'out'}", "verify=false"]) == 0
    assert "not checked by another program" in capsys.readouterr().out
    assert "No other program has checked this folder" in (tmp_path / "out" / "README.md").read_text()
