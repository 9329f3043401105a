"""Rounding noise: what is changed, by how much, and what it moves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import Result, noise
from sqbench.evaluation.perplexity import as_reference, perplexity
from sqbench.execution import lower
from sqbench.models.base import Model
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.models.stream_loading import stream_language_model
from sqbench.models.streaming import StreamedModel


@pytest.fixture(scope="module")
def floats(baseline: Result) -> Result:
    return as_reference(baseline)


@pytest.fixture(scope="module")
def quantized(tiny: LanguageModel, statistics: Statistics) -> Model:
    return api.quantize(tiny, statistics, "rtn", bits="w8a8_dynamic")


def read(model: LanguageModel, ids: Tensor) -> Tensor:
    """What comes out of the embeddings in a forward pass."""
    seen: list[Tensor] = []
    handle = model.module.get_input_embeddings().register_forward_hook(lambda layer, args, out: seen.append(out))
    model.forward(ids)
    handle.remove()
    return seen[0]


def test_embeddings_change_by_a_millionth_and_only_inside(tiny: LanguageModel) -> None:
    ids = tiny.example()
    before = read(tiny, ids)
    with noise.disturbed(tiny, 3):
        moved, again, other = read(tiny, ids), read(tiny, ids), tiny.forward(ids[:1])
    share = ((moved - before) / before)[before != 0]
    assert 0.9e-6 < share.std() < 1.1e-6
    assert share.abs().max() < 6e-6
    assert torch.equal(moved, again)
    assert other.isfinite().all()
    with noise.disturbed(tiny, 4):
        assert not torch.equal(moved, read(tiny, ids))
    assert torch.equal(before, read(tiny, ids))


def test_half_precision_changes_by_a_step(tiny_folder: Path) -> None:
    from sqbench.models.language import load_language_model

    model = load_language_model(
        tiny_folder, torch.device("cpu"), name="tiny", fingerprint="tiny", dtype="bfloat16", trust_remote_code=False, keep=()
    )
    before = read(model, model.example())
    with noise.disturbed(model, 0):
        moved = read(model, model.example())
    assert moved.dtype == torch.bfloat16
    assert 0.1 < (moved != before).float().mean() < 0.9
    assert torch.allclose(moved.float(), before.float(), rtol=0.05)


def test_pixels_change_by_a_millionth() -> None:
    class Eye(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    model = ImageModel(Eye(), "eye", "eye")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with noise.disturbed(model, 0):
        share = model.forward(images) / images.flatten(1) - 1
    assert 0.9e-6 < share.std() < 1.1e-6
    assert torch.equal(model.forward(images), images.flatten(1))


@pytest.mark.parametrize("backend", ["sim", "int"])
def test_a_quantized_model_moves_more_than_the_float_one(
    backend: str, tiny: LanguageModel, quantized: Model, windows: Windows, floats: Result, tmp_path: Path
) -> None:
    executed = lower(quantized, backend)
    given: Any = ("perplexity", {}, windows, tiny, floats, executed, 3, tmp_path)
    found = noise.measure(*given)
    assert (found["runs"], found["relative"]) == (3, 1e-6)
    own, base, change = (found[part]["perplexity"] for part in ("metrics", "baseline", "delta"))
    assert 0 < base["std"] < own["std"]
    assert own["min"] < own["max"]
    result = perplexity(executed, windows, floats)
    assert own["min"] == pytest.approx(result.metrics["perplexity"], rel=0.05)
    assert change["max"] == pytest.approx(result.metrics["perplexity"] - floats.metrics["perplexity"], abs=10 * own["std"])
    assert noise.measure(*given) == found


def test_the_spread_is_that_of_the_runs(tiny: LanguageModel, windows: Windows, floats: Result, tmp_path: Path) -> None:
    found = noise.measure("perplexity", {}, windows, tiny, floats, None, 2, tmp_path)
    values = []
    for run in range(2):
        with noise.disturbed(tiny, run):
            values.append(perplexity(tiny, windows, floats).metrics["perplexity"])
    assert found["metrics"]["perplexity"] == {"std": np.std(values, ddof=1), "min": min(values), "max": max(values)}
    assert found["metrics"] == found["baseline"]
    assert found["delta"]["perplexity"] == {"std": 0, "min": 0, "max": 0}


def test_block_by_block_moves_as_the_whole_model(
    tiny: LanguageModel, tiny_folder: Path, windows: Windows, floats: Result, tmp_path: Path
) -> None:
    blocks = stream_language_model(
        tiny_folder, torch.device("cpu"), name="tiny", fingerprint="tiny", dtype="float32", trust_remote_code=False, keep=()
    )
    assert isinstance(blocks, StreamedModel)
    models: tuple[Model, ...] = (tiny, blocks)
    whole, streamed = (
        noise.measure("perplexity", {}, windows, model, floats, None, 2, tmp_path / type(model).__name__) for model in models
    )
    for end in ("min", "max"):
        assert streamed["metrics"]["perplexity"][end] == pytest.approx(whole["metrics"]["perplexity"][end], rel=1e-6)
