"""Exports for ONNX Runtime and OpenVINO: text and images, refused by name, and proven by the runtime."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import Ended
from labs import Lab, scheme
from torch import nn

from sqbench import api, export
from sqbench.calibration import Statistics
from sqbench.data.images import ImageExamples
from sqbench.errors import UserError
from sqbench.evaluation.decoding import greedy
from sqbench.exports.targets import TARGETS, save
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

Command = Callable[..., Ended]
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
CHANNEL, GROUP = Format(8, granularity="channel"), Format(4, symmetric=False, granularity="group", group_size=32)
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}


@pytest.fixture(params=list(PACKAGES))
def format(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param])
    name: str = request.param
    return name


@pytest.mark.parametrize("ops", ["linear", "linear+matmul"])
@pytest.mark.usefixtures("exact")
def test_images_are_exported_and_proven(ops: str, format: str, vit: Lab, tmp_path: Path) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", scheme(8, 8, ops=ops))
    save(quantized, tmp_path / "out", format=format)
    assert (tmp_path / "out" / FILES[format]).is_file()
    told = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert told["input_size"] == [1, 12, 12]
    examples = ImageExamples(vit.test, vit.train, vit.train, tuple(map(str, range(8))), ())
    proof = TARGETS[format].prove(quantized, tmp_path / "out", examples)
    assert proof.largest <= 0.1 * proof.scale  # a code on the edge between two moves what follows
    assert proof.agreement > 0.98
    assert proof.metric == "top1"


@pytest.mark.slow
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


@pytest.mark.parametrize("embedding", [None, CHANNEL, GROUP], ids=str)
def test_a_program_without_sqbench_writes_text_with_the_file(
    format: str, embedding: Format | None, tiny: LanguageModel, statistics: Statistics, tmp_path: Path
) -> None:
    """Inputs and outputs have the names that other tools give them, and the cache goes from one call to the next."""
    quantized = api.quantize(tiny, statistics, "rtn", Scheme("w8a16", CHANNEL, embedding=embedding))
    save(quantized, tmp_path / "out", format=format)
    run = _runner(format, str(tmp_path / "out" / FILES[format]))
    ids = tiny.example()[:1].numpy()
    layers, heads, width = tiny.module.config.num_hidden_layers, tiny.module.config.num_key_value_heads, tiny.module.config.head_dim
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past = {name: np.zeros((1, heads, 0, width), np.float32) for name in names}
    written: list[int] = []
    for _ in range(6):
        seen = past["0.key"].shape[2]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((1, seen + ids.shape[1]), np.int64),
            "position_ids": np.arange(seen, seen + ids.shape[1])[None],
        }
        found = run({**given, **{f"past_key_values.{name}": value for name, value in past.items()}})
        past = {name: found[f"present.{name}"] for name in names}
        if not written:
            wanted = quantized.forward(tiny.example()[:1]).numpy()
            assert np.abs(found["logits"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        written.append(int(found["logits"][0, -1].argmax()))
        ids = np.array([written[-1:]])
    assert written == greedy(quantized.module, tiny.example()[:1], 6).tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fmt", [CHANNEL, GROUP], ids=str)
def test_the_file_holds_the_bytes_that_the_model_counts(
    format: str, fmt: Format, tied: bool, tiny: LanguageModel, statistics: Statistics, tmp_path: Path
) -> None:
    model = tiny
    if not tied:
        module = copy.deepcopy(tiny.module)
        module.config.tie_word_embeddings = False
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().flip(0))
        model = LanguageModel(module, tiny.name, "untied", tokenizer=tiny.tokenizer)
    quantized = api.quantize(model, statistics, "rtn", Scheme("all", fmt, embedding=fmt, head=fmt))
    save(quantized, tmp_path / "out", format=format)
    held = _constants(format, tmp_path / "out" / FILES[format])
    assert held == pytest.approx(
        quantized.stored_bytes, rel=0.1
    )  # ONNX has scales for blocks of rows, OpenVINO the tables of angles


def _constants(format: str, file: Path) -> int:
    """Bytes of all constants."""
    if format == "openvino":
        return file.with_suffix(".bin").stat().st_size
    import onnx

    return sum(len(one.raw_data) for one in onnx.load(file).graph.initializer)


def _runner(format: str, file: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Inputs by name -> outputs by name."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        outputs = [one.name for one in session.get_outputs()]
        return lambda given: dict(zip(outputs, session.run(None, given), strict=True))
    import openvino

    request = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return lambda given: {port.any_name: value.copy() for port, value in request.infer(given, share_inputs=True).items()}
