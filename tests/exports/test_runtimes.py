"""Exports for ONNX Runtime and OpenVINO: text and images, refused by name, and proven by the runtime."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended
from labs import Lab, scheme

from sqbench import api, export
from sqbench.calibration import Statistics
from sqbench.data.images import ImageExamples
from sqbench.errors import UserError
from sqbench.exports.targets import TARGETS, save
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

Command = Callable[..., Ended]
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}


@pytest.fixture(params=list(PACKAGES))
def format(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param])
    name: str = request.param
    return name


def test_images_are_exported_and_proven(format: str, vit: Lab, tmp_path: Path) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", scheme(8, 8))
    save(quantized, tmp_path / "out", format=format)
    assert (tmp_path / "out" / FILES[format]).is_file()
    told = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert told["input_size"] == [1, 12, 12]
    examples = ImageExamples(vit.test, vit.train, vit.train, tuple(map(str, range(8))), ())
    proof = TARGETS[format].prove(quantized, tmp_path / "out", examples)
    assert proof.largest <= 0.1 * proof.scale  # a code on the edge between two moves what follows
    assert proof.agreement > 0.98
    assert proof.metric == "top1"


def test_text_through_the_command_line(
    format: str, command: Command, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("method=rtn", "bits=w4a16").code == 0
    (record,) = Store(results).records()
    out = tmp_path / "exported"
    assert export.main([record.point_id, f"results_dir={results}", f"out={out}", f"format={format}"]) == 0
    assert "the same most likely answer in 100.00 %" in capsys.readouterr().out
    proof = json.loads((out / "sqbench.json").read_text())["proof"]
    assert proof["largest"] <= 1e-4 * proof["scale"]
    for name in (FILES[format], "tokenizer.json", "config.json", "README.md"):
        assert (out / name).is_file()
    weights = out / FILES[format].replace(".xml", ".bin")
    assert weights.stat().st_size < 300_000  # 459 kB in float32


def test_what_a_runtime_cannot_express_is_refused(format: str, tiny: LanguageModel, statistics: Statistics, tmp_path: Path) -> None:
    quantized = api.quantize(tiny, statistics, "rtn", Scheme("nf4", Format(4, element="nf4", granularity="group", group_size=64)))
    with pytest.raises(UserError, match=rf"format={format}: model\.layers\.0\.\S+ cannot be written; .* element int, not nf4"):
        save(quantized, tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []
