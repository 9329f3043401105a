"""Quantized models in runtimes: numbers of the simulation, products in the asked format, a record that says what ran how."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended, environment
from families import gemma
from labs import Lab, images, scheme
from runtimes.agreement import apart, otherwise

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store
from sqbench.running.identity import GRAPHS, REVISION, outdated
from sqbench.runtimes import RUNTIMES, deployment

Command = Callable[..., Ended]


# ONNX Runtime makes integers only of convolutions whose output is rounded, and of linear layers over more than one axis.
FLOATS = {"vit": ("patch_embed.proj", "head"), "cnn": ("conv2", "fc")}


@pytest.mark.parametrize("name", ["vit", "cnn"])
@pytest.mark.usefixtures("exact")
def test_static_ranges_run_in_integers(name: str, backend: str, request: pytest.FixtureRequest) -> None:
    lab: Lab = request.getfixturevalue(name)
    quantized = api.quantize(lab.model, lab.statistics, "minmax", scheme(8, 8))
    executed = lower(quantized, backend)
    for count in (2, 5):  # shapes besides that of the example
        batch = next(images(count, 5).batches(count)).images
        assert apart(executed, quantized, batch) < 2e-2  # a code on the edge between two moves what follows
    named = [layer for entry in executed.report["execution"] for layer in entry["layers"]]
    assert sorted(named) == sorted(lab.model.topology.layers)
    floats = {"openvino": (), "onnxruntime": FLOATS[name]}[backend]
    assert otherwise(executed) == dict.fromkeys(floats, "it multiplies floats")
    assert executed.stored_bytes == quantized.stored_bytes
    batch = next(lab.test.batches(len(lab.test)))
    same = executed.forward(batch.images).argmax(1) == quantized.forward(batch.images).argmax(1)
    assert same.float().mean() > 0.98


SCHEMES = {
    "w8a8_dynamic": Scheme("a", Format(8, granularity="channel"), Format(8, granularity="token", dynamic=True)),
    "w4a16": Scheme("c", Format(4, symmetric=False, granularity="group", group_size=64)),
}


@pytest.mark.parametrize("bits", SCHEMES)
@pytest.mark.usefixtures("exact")
def test_language_models_predict_the_same(
    bits: str, backend: str, tiny: LanguageModel, statistics: Statistics, windows: object
) -> None:
    quantized = api.quantize(tiny, statistics, "rtn", SCHEMES[bits])
    executed = lower(quantized, backend)
    exact = quantized if "dynamic" not in bits else None
    ids = windows.evaluation[:1]  # type: ignore[attr-defined]
    assert apart(executed, quantized, ids) < (2e-2 if exact is None else 1e-5)
    assert otherwise(executed) == {}
    assert executed.report["runtime"]["largest_difference"] <= 2e-2 * executed.report["runtime"]["largest_output"]
    result, base = (api.evaluate(model, windows) for model in (executed, quantized))  # type: ignore[arg-type]
    assert result.metrics["perplexity"] == pytest.approx(base.metrics["perplexity"], rel=1e-3)
    assert result.metrics["weight_bytes"] == base.metrics["weight_bytes"]


def test_what_is_no_graph_is_refused(backend: str) -> None:
    model, half = gemma(), Scheme("a", Format(8, granularity="channel"))
    quantized = api.quantize(model, api.calibrate(model, model.example()), "rtn", half)
    with pytest.raises(UserError, match=f"backend={backend}: Gemma2 cannot be written .* has layers of sliding_attention"):
        lower(quantized, backend)


REFUSED = {
    "bits=nf4": "bits=nf4 cannot be written; {title} unpacks weights with element int, not nf4",
    "bits=w4a4_dynamic": "bits=w4a4_dynamic cannot be written; ",
    "bits=w8a8_dynamic bits.ops=full": "bits.ops=full: must be linear with backend={name} and bits=w8a8_dynamic; {title}",
    "bits=w8a16 noise=2": "noise=2: must be 0 with backend={name}",
    "bits=w8a16 model.dtype=bfloat16": "model.dtype=bfloat16: must be float32 with backend={name}",
    "bits=w8a16 blockwise=true": "blockwise=true: must be false with backend={name}",
}


@pytest.mark.parametrize("changes", REFUSED)
def test_what_a_runtime_does_not_run_is_refused_before_anything_is_computed(
    changes: str, backend: str, command: Command, results: Path
) -> None:
    ended = command("method=rtn", f"backend={backend}", *changes.split(" "))
    message = REFUSED[changes].format(name=backend, title=RUNTIMES[backend].title)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert list(Store(results).records()) == []


def test_a_missing_package_is_named_with_the_line_that_installs_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    ended = command("method=rtn", "bits=w8a16", "backend=openvino")
    assert "backend=openvino: needs openvino, which is not installed; pip install 'sqbench[runtimes]' installs it" in ended.err


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_points_through_the_command_line(backend: str, command: Command, results: Path) -> None:
    ended = command("-m", "method=fp,rtn", "bits=w8a8_dynamic", f"backend=sim,{backend}")
    assert ended.code == 0, ended.err
    records = {record.identity["backend"]: record for record in Store(results).records() if record.quantized}
    assert set(records) == {"sim", backend}
    own, sim = records[backend], records["sim"]
    assert own.metrics["perplexity"] == pytest.approx(sim.metrics["perplexity"], rel=1e-3)
    assert own.quantized["runtime"]["version"].startswith(RUNTIMES[backend].title)
    ended = command("method=rtn", "bits=w8a16", f"backend={backend}", "eval=latency", "eval.decode=0", "eval.repetitions=1")
    assert ended.code == 0, ended.err
    (timed,) = (record for record in Store(results).records() if record.identity["eval"]["name"] == "latency")
    assert timed.metrics["tokens_per_s"] > 0
    assert "decode_tokens_per_s" not in timed.metrics


def test_layers_that_openvino_would_leave_in_float_are_refused_before_anything_is_computed(
    command: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("sqbench.running.flow.reference", lambda *given, **named: pytest.fail("the float model was evaluated"))
    groups = ("bits.activations.granularity=group", "bits.activations.group_size=192")
    assert command("method=rtn", "bits=w8a8_dynamic", *groups, "backend=openvino").code == 1
    (record,) = Store(results).records()
    assert record.error is not None
    assert "bits.activations.group_size=192: model.layers.0.self_attn.q_proj has 64 inputs" in record.error["message"]


def test_points_of_older_graphs_are_outdated_and_others_are_not() -> None:
    now = {"revision": REVISION, "backend": "openvino", "graphs": GRAPHS}
    assert outdated(now) is None
    assert outdated({"revision": REVISION, "backend": "openvino"}) == f"graphs 1, the code's is {GRAPHS}"
    assert outdated({"revision": REVISION, "backend": "int"}) is None
    assert outdated({**now, "revision": REVISION - 1}) == f"revision {REVISION - 1}, the code's is {REVISION}"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="limits the instructions of x86")
def test_sums_saturate_without_vnni() -> None:
    pytest.importorskip("openvino")
    found = (
        "import sqbench.runtimes.saturation as at; from sqbench.runtimes.openvino import OPENVINO; print(at.saturates(OPENVINO))"
    )
    limited = environment(ONEDNN_MAX_CPU_ISA="AVX2")
    ended = subprocess.run([sys.executable, "-c", found], env=limited, capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "True", ended.stderr


def test_the_record_says_that_sums_can_saturate(backend: str, vit: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "saturates", lambda _: True)
    found = {}
    for bits in (8, 7):
        quantized = api.quantize(vit.model, vit.statistics, "minmax", scheme(bits, 8))
        reasons = otherwise(lower(quantized, backend))
        found[bits] = "its sums can saturate at 16 bits, because this CPU has no VNNI" in reasons.values()
    assert found == {8: True, 7: False}
