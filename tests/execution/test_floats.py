"""Float layers on oneDNN: rounding apart the same, chosen once per machine and remembered."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli import Ended
from torch import nn
from transformers.pytorch_utils import Conv1D

from sqbench.execution import floats, lower
from sqbench.execution.floats import FloatLinear, prefers_onednn
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import stored_bytes
from sqbench.records.store import Store


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine that has not been probed yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    floats._onednn_is_faster.cache_clear()
    yield
    floats._onednn_is_faster.cache_clear()


@pytest.mark.parametrize("layer", [nn.Linear(40, 24), nn.Linear(40, 24, bias=False), Conv1D(24, 40)])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_the_same_to_rounding(layer: nn.Module, rows: int) -> None:
    layer.requires_grad_(False)
    x = torch.randn(2, rows, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(FloatLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_the_probe_runs_once_and_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(floats, "_speedup", lambda: asked.append(1) or 2.0)
    weight = torch.zeros(4, 4)
    assert prefers_onednn(weight)
    floats._onednn_is_faster.cache_clear()  # another process
    monkeypatch.setattr(floats, "_speedup", lambda: pytest.fail("asked twice"))
    assert prefers_onednn(weight)
    assert list(json.loads((tmp_path / "sqbench" / "float_kernel.json").read_text()).values()) == [True]
    assert not prefers_onednn(weight.to(torch.bfloat16))


def test_a_small_gain_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "_speedup", lambda: 1.1)
    assert not prefers_onednn(torch.zeros(4, 4))


def test_the_measured_gain_is_a_ratio() -> None:
    assert 0.05 < floats._speedup() < 20


def test_a_model_on_prepacked_layers_predicts_the_same(monkeypatch: pytest.MonkeyPatch, tiny: LanguageModel) -> None:
    monkeypatch.setattr(floats, "_speedup", lambda: 2.0)
    packed = lower(tiny, "sim")
    assert sum(isinstance(part, FloatLinear) for part in packed.module.modules()) == 15  # the head too
    ids = tiny.example()
    torch.testing.assert_close(packed.forward(ids), tiny.forward(ids), rtol=1e-5, atol=1e-4)
    assert not any(isinstance(part, FloatLinear) for part in tiny.module.modules())
    assert stored_bytes(packed.module) == stored_bytes(tiny.module)


@pytest.mark.slow
def test_a_sweep_on_prepacked_layers_has_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], results: Path
) -> None:
    asked = ("-m", "method=fp,smoothquant", "bits=w8a8", "alpha=0.5")
    numbers = []
    for gain, folder in ((1.0, "plain"), (2.0, "packed")):
        monkeypatch.setattr(floats, "_speedup", lambda gain=gain: gain)
        floats._onednn_is_faster.cache_clear()
        monkeypatch.setenv("XDG_CACHE_HOME", str(results / folder))
        assert command(*asked, f"results_dir={results / folder}").code == 0
        numbers.append({record.point_id: record.metrics for record in Store(results / folder).records()})
    plain, packed = numbers
    assert plain.keys() == packed.keys()
    for point, metrics in plain.items():
        assert packed[point] == pytest.approx(metrics, rel=1e-3, abs=1e-6)  # codes on an edge may fall to the other side
