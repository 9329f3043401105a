"""Comparisons with other tools: what runs is compared, what does not run says why, and converted layers are the layers."""

import pytest
import torch
from labs import Lab
from torch import nn

from benchmarks import latency, peers, peers_layers, peers_methods
from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import Result
from sqbench.models.language import LanguageModel

# The tools warn about themselves: of deprecations, and of what tracing cannot see.
pytestmark = pytest.mark.filterwarnings("ignore")


def missing(module: nn.Module) -> nn.Module:
    raise ImportError("no such tool\nand more lines of it")


def broken_later(module: nn.Module) -> nn.Module:
    """Converts, and fails when it runs."""
    return nn.Module()


@torch.no_grad()
def test_tools_that_do_not_run_are_rows_with_a_reason(tiny: LanguageModel, statistics: Statistics, windows: Windows) -> None:
    quantized = api.quantize(tiny, statistics, "rtn", bits="w4a16")
    tools = {"good": peers_layers.bfloat16, "missing": missing, "broken": broken_later}
    ids = windows.evaluation[:1, :16]
    rows = peers.text_rows("prefill", tiny, quantized, tools, lambda sides: latency.prefill_sides(sides, ids), 16, 2)
    assert [row[1] for row in rows] == [latency.BASE, "sqbench", "good", "missing", "broken"]
    assert [float(row[4]) > 0 for row in rows[:3]] == [True] * 3
    assert (rows[0][3], rows[1][4]) == ("1.00", "1.00")
    assert rows[3][2:] == ["does not run here: ImportError: no such tool", "--", "--"]
    assert rows[4][2].startswith("does not run here: ")


def test_methods_tell_seconds_and_perplexities(tiny: LanguageModel, windows: Windows, baseline: Result) -> None:
    task = peers_methods.Task(tiny, windows, "sim", [0.3, 0.5])
    tools = {"sqbench": peers_methods.sqbench_smoothquant, "float": lambda task: task.model.module, "missing": missing}
    rows = peers.method_rows("smoothquant", task, tools)
    seconds, text = rows[0][2].split(" s, perplexity ")
    assert float(seconds) > 0
    assert [float(value) for value in text.split()] == pytest.approx([baseline.metrics["perplexity"]] * 2, rel=0.02)
    assert rows[1][2].endswith(f"perplexity {baseline.metrics['perplexity']:.2f}")
    assert rows[2][2] == "does not run here: ImportError: no such tool"


def test_our_awq_is_searched_on_all_calibration_windows(tiny: LanguageModel, windows: Windows) -> None:
    task = peers_methods.Task(tiny, windows, "sim", [])
    module = peers_methods.sqbench_awq(task)
    plain = api.quantize(tiny, api.calibrate(tiny, windows.calibration), "rtn", bits="w4a16")
    loss = {
        name: api.evaluate(tiny.with_module(m, None), windows).metrics["perplexity"]
        for name, m in (("awq", module), ("rtn", plain.module))
    }
    assert loss["awq"] < loss["rtn"]


@torch.no_grad()
def test_onnx_runtime_computes_the_same_model(vit: Lab) -> None:
    pytest.importorskip("onnxruntime")
    images = vit.model.example().repeat(2, 1, 1, 1)
    expected = vit.model.body(images)
    for integer, error in ((False, 1e-4), (True, 0.3)):  # without VNNI its sums saturate
        (found,) = peers_layers.onnx_runtime(vit.model.module, images, integer=integer)()  # type: ignore[misc]
        assert torch.allclose(torch.from_numpy(found), expected, atol=error * float(expected.abs().max()))


CONVERSIONS = {**peers_layers.PREFILL, **peers_layers.DECODE}


@torch.no_grad()
@pytest.mark.parametrize("name", CONVERSIONS)
def test_converted_modules_compute_the_same_model(name: str, tiny: LanguageModel, windows: Windows) -> None:
    ids = windows.evaluation[:4]
    try:
        converted = CONVERSIONS[name](tiny.module)
    except ImportError as error:
        pytest.skip(f"not installed: {error}")
    found, expected = converted(input_ids=ids).logits.float(), tiny.forward(ids)
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.4  # chance: 1 in 256
    assert not torch.equal(found, expected)
    assert next(tiny.module.parameters()).dtype == torch.float32  # the float model is left alone
