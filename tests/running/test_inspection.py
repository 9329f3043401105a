"""What pictures of a model show, against the model itself and against what a run does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sqbench import api
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.parts.task import Task
from sqbench.recipes.configured import named
from sqbench.reporting.surfaces import ratio
from sqbench.running import inspection
from sqbench.running.inspection import Inspected, division_of, inspected, shown_format, states_of

W8A8 = Scheme("w8a8", Format(8, True, "channel"), Format(8, False, "tensor"))
UP = "model.layers.0.mlp.up_proj"
NORM = "model.layers.0.post_attention_layernorm"


@pytest.fixture
def seen(tiny, statistics, windows) -> Inspected:  # type: ignore[no-untyped-def]
    return Inspected(Task(tiny, statistics, W8A8), named("smoothquant", alpha=0.5), windows.calibration[:1], 16)


def test_the_smoothed_state_is_what_the_folded_model_reads(seen: Inspected, tiny: LanguageModel) -> None:
    (original, smoothed), done = states_of(seen, UP, "minmax")
    assert done == f"Smoothed: {NORM} -> gate_proj, up_proj, alpha 0.5"
    assert original.activation.shape == (64, 64)
    assert original.weight.shape == (64, 192)
    quantized = api.quantize(tiny, seen.task.statistics, named("smoothquant", alpha=0.5), Scheme("fp"))
    folded = Inspected(Task(quantized, seen.task.statistics, W8A8), named("smoothquant", alpha=0.5), seen.inputs, 16)
    np.testing.assert_allclose(smoothed.activation, inspection._captured(folded, UP), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(smoothed.weight, quantized.module.get_submodule(UP).weight.T, rtol=1e-4)
    np.testing.assert_allclose(original.activation @ original.weight, smoothed.activation @ smoothed.weight, rtol=1e-2, atol=1e-3)


def test_planted_outliers_are_seen_and_smoothed_away(seen: Inspected) -> None:
    (original, smoothed), _ = states_of(seen, UP, "minmax")
    assert ratio(original.activation_range) > 10 > 3 > ratio(smoothed.activation_range)
    assert set(np.argsort(-original.activation_range)[:2]) == {0, 1}


def test_ranges_are_those_that_a_run_clips_to(seen: Inspected) -> None:
    (original, smoothed), _ = states_of(seen, UP, "minmax")
    stats = seen.task.statistics.inputs[seen.task.topology.site[UP]]
    step = float(stats.high.max() - stats.low.min()) / 255
    assert original.limits == pytest.approx((float(stats.low.min()), float(stats.high.max())), abs=step)
    assert smoothed.limits[1] < original.limits[1] / 10
    clipped = states_of(seen, UP, "percentile")[0][0]
    assert clipped.limits[1] <= original.limits[1]
    symmetric = Inspected(Task(seen.model, seen.task.statistics, Scheme("s", None, Format(8))), seen.recipe, seen.inputs, 16)
    low, high = states_of(symmetric, UP, "minmax")[0][0].limits
    assert low == -high


@pytest.mark.parametrize("method", ["smoothquant", "rtn"])
def test_a_layer_that_nothing_is_moved_to_stands_alone(seen: Inspected, method: str) -> None:
    layer = "model.layers.0.mlp.down_proj" if method == "smoothquant" else UP
    other = Inspected(seen.task, named(method), seen.inputs, 16)
    states, done = states_of(other, layer, "minmax")
    assert [state.name for state in states] == ["original"]
    assert done == f"Not smoothed: {method} moves nothing there"


def test_pairs_are_smoothed_where_the_method_moves_them(seen: Inspected) -> None:
    pairs = Inspected(seen.task, named("smoothquant", alpha=0.5, pairs=True), seen.inputs, 16)
    (_, smoothed), done = states_of(pairs, "model.layers.0.mlp.down_proj", "minmax")
    assert done.startswith("Smoothed: model.layers.0.mlp.up_proj -> down_proj")
    assert smoothed.activation.shape == (64, 192)


def test_unknown_layers_and_ranges_name_what_is_close(seen: Inspected) -> None:
    with pytest.raises(UserError, match=r"layer=model.layers.0.mlp.upproj: did you mean model.layers.0.mlp.up_proj, "):
        states_of(seen, "model.layers.0.mlp.upproj", "minmax")
    with pytest.raises(UserError, match=r"ranges=minmx: did you mean minmax\?"):
        states_of(seen, UP, "minmx")
    with pytest.raises(UserError, match=rf"layer=x: .*Groups: .*{NORM} -> gate_proj, up_proj"):
        division_of(seen, "x")


@pytest.mark.parametrize("name", [NORM, UP])
def test_a_division_changes_numbers_and_no_function(seen: Inspected, tiny: LanguageModel, name: str) -> None:
    group, division, alpha, error = division_of(seen, name)
    assert (group.source, alpha) == (NORM, 0.5)
    assert 0 < error < 1e-4
    norm = tiny.module.get_submodule(NORM).weight.numpy()
    np.testing.assert_array_equal(division.norm[0], norm)
    np.testing.assert_allclose(division.norm[1], norm / division.scale, rtol=1e-6)
    np.testing.assert_allclose(division.columns[1], division.columns[0] * division.scale, rtol=1e-5)
    np.testing.assert_allclose(division.activation[1], division.columns[1], rtol=1e-4)  # alpha 0.5 meets in the middle
    assert division.bias is None


def test_without_a_name_the_first_group_is_divided(seen: Inspected) -> None:
    assert division_of(seen, None)[0] == seen.task.topology.groups[0]


def test_a_method_without_moves_names_those_that_have_them(seen: Inspected) -> None:
    with pytest.raises(UserError, match=r"method=rtn: moves nothing between .*; awq, smoothquant do"):
        division_of(Inspected(seen.task, named("rtn"), seen.inputs, 16), None)


def test_a_dynamic_format_is_shown_as_one_range_for_the_tensor() -> None:
    assert shown_format(Format(8, True, "token", None, True)) == Format(8)
    assert shown_format(Format(4, False, "group", 64, True)) == Format(4, False)
    assert shown_format(None) == Format()


def test_loading_is_that_of_a_run(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    overrides = (
        *("model=hf", f"model.name={tiny_folder}", "data=text", f"data.path={text_file}", "data.window=64", "data.windows=2"),
        *("calibration.windows=3", "method=awq", "bits=w4a16"),
    )
    seen = inspected(api.configure(*overrides), 2, tmp_path)
    model, examples = api.load(*overrides)
    assert torch.equal(seen.inputs, examples.calibration[:2])
    assert (seen.calibrated, seen.recipe.name, seen.task.scheme.name) == (3, "awq", "w4a16")
    assert len(list((tmp_path / "calibration").glob("*.safetensors"))) == 5  # a file for each everyday collector
    assert seen.model.fingerprint == model.fingerprint
