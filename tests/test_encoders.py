"""Encoders from the command line: a tiny BERT in a temporary folder, quantized, compared and put into a table."""

import json
from pathlib import Path

import pytest
from cli import Ended, call
from encoders import as_sentence_transformer, classes, pairs, save_encoder

from sqbench import export
from sqbench.records.store import Store
from sqbench.runtimes import RUNTIMES

COLUMNS = "data.columns={text: a, second: b, score: score}"


def records(results: Path) -> dict[str, object]:
    return {record.identity["method"]["name"]: record for record in Store(str(results)).records()}


@pytest.fixture
def run(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]):
    folder = as_sentence_transformer(save_encoder(tmp_path / "bert"))
    table = pairs(tmp_path / "pairs.csv")

    def start(*changes: str) -> Ended:
        flags = [change for change in changes if change.startswith("-")]
        given = [change for change in changes if not change.startswith("-")]
        base = ("model=hf", f"model.name={folder}", "data=labelled_text", f"data.path={table}", "data.sentences=24")
        given += [COLUMNS] * (not any(change.startswith("data.columns") for change in changes))
        more = ("calibration.sentences=8", "eval.resamples=200", "tracker=none", f"results_dir={results}")
        return call(*flags, *base, *more, *given, capsys=capsys)

    return start


def test_a_sweep_over_a_tiny_bert(run, results: Path) -> None:
    assert run("-m", "method=fp,minmax", "bits=w8a8", "plan=true").code == 0
    ended = run("-m", "method=fp,minmax,awq", "bits=w8a8")
    assert ended.code == 0, ended.err
    found = records(results)
    assert found.keys() == {"fp", "minmax", "awq"}
    for name, record in found.items():
        assert record.identity["data"]["sentences"] == 24
        if name != "fp":
            assert {"value", "low", "high", "p"} <= record.delta["spearman"].keys()
            assert record.quantized["coverage"] > 0.9
            assert record.declared["spearman"].outcome.target == "target"
            assert any("LayerNorm" in refused["group"] for refused in record.quantized["refused"])


def test_integer_kernels_say_the_same(run, results: Path) -> None:
    assert run("method=rtn", "bits=w8a8_dynamic").code == 0
    simulated = records(results)["rtn"].metrics["spearman"]
    assert run("method=rtn", "bits=w8a8_dynamic", "backend=int").code == 0
    both = [record.metrics["spearman"] for record in Store(str(results)).records()]
    assert len(both) == 2
    assert both == pytest.approx([simulated] * 2, abs=0.02)


def test_a_probe_on_frozen_vectors(run, results: Path, tmp_path: Path) -> None:
    table = classes(tmp_path / "classes.jsonl", 60)
    given = (f"data.path={table}", "data.columns={text: text, label: label}", "head=probe", "data.sentences=30")
    assert run("-m", "method=fp,rtn", "bits=w4a16_g32", *given).code == 0
    found = records(results)
    assert found["fp"].identity["model"]["head"]["name"] == "probe"
    assert {"accuracy", "f1", "mcc"} <= found["rtn"].delta.keys()
    assert found["fp"].metrics["accuracy"] > 0.5


def test_what_does_not_go_together_is_refused_in_one_line(run, results: Path, tmp_path: Path) -> None:
    for change, message in (
        ("data=pydoc", "is an encoder, whose predictions see later tokens"),
        ("model=vit_nano", "reads images, and this is sentences"),
        ("data.columns={text: a, score: missing}", "has no column missing; it has a, b, score"),
        ("blockwise=true", "blockwise=true: is for language models"),
        ("calibration.sentences=0", "calibration.sentences=0: must be 1 or more"),
    ):
        ended = run(change)
        assert ended.code == 2, change
        assert message in ended.err


@pytest.mark.parametrize("backend", RUNTIMES)
def test_runtimes_say_the_same(backend: str, run, results: Path) -> None:
    pytest.importorskip(RUNTIMES[backend].package)
    assert run("-m", "method=rtn", "bits=w8a8_dynamic", f"backend=sim,{backend}").code == 0
    both = {record.identity["backend"]: record for record in Store(str(results)).records()}
    assert both[backend].metrics["spearman"] == pytest.approx(both["sim"].metrics["spearman"], abs=0.02)
    assert both[backend].quantized["runtime"]["version"].startswith(RUNTIMES[backend].title)
    assert run("method=rtn", "bits=w8a8_dynamic", f"backend={backend}", "eval=latency", "eval.repetitions=1").code == 0


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_encoder_is_exported_with_its_pooling_and_its_tokenizer(
    format: str, package: str, run, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    assert run("method=rtn", "bits=w8a16").code == 0
    (record,) = Store(str(results)).records()
    out = tmp_path / "exported"
    assert export.main([record.point_id, f"results_dir={results}", f"out={out}", f"format={format}"]) == 0
    assert "spearman" in capsys.readouterr().out
    proof = json.loads((out / "sqbench.json").read_text())["proof"]
    assert proof["largest"] <= 1e-5 * proof["scale"]
    assert proof["agreement"] is None  # vectors have no most likely class
    assert (out / "tokenizer.json").is_file()


def test_layers_that_openvino_folds_are_refused_before_anything_is_computed(
    run, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("sqbench.running.flow.reference", lambda *given, **named: pytest.fail("the float model was evaluated"))
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
    folder = as_sentence_transformer(save_encoder(tmp_path / "deberta", "DebertaV2", **relative))
    assert run(f"model.name={folder}", "method=rtn", "bits=w8a16", "backend=openvino").code == 1
    (record,) = Store(str(results)).records()
    assert record.error is not None
    assert "pos_key_proj reads constants alone, and OpenVINO folds it; use ONNX Runtime" in record.error["message"]
