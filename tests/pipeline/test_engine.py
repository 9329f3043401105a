"""The block engine: propagated calibration, and blocks that read their inputs again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import Ended
from labs import Lab, scheme

from sqbench import api
from sqbench.calibration import collect, uncollected
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation.perplexity import perplexity
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.language import LanguageModel
from sqbench.models.stream_loading import stream_language_model
from sqbench.parts.task import Task
from sqbench.pipeline.engine import check, quantize
from sqbench.pipeline.quantize import quantize_part
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.recipes.configured import named
from sqbench.recipes.recipe import Recipe
from sqbench.records.fields import point_fields
from sqbench.records.store import Store
from sqbench.reporting.frame import results_frame
from sqbench.statistics import COLLECTORS

STATIC = scheme(8, 8)  # the ranges of inputs come from what calibration saw


def streamed(folder: Path) -> Model:
    said: dict[str, Any] = {"name": "tiny", "fingerprint": "tiny", "dtype": "float32", "trust_remote_code": False, "keep": ()}
    return stream_language_model(folder, torch.device("cpu"), **said)


def limits(model: Model, layer: str) -> tuple[torch.Tensor, ...]:
    """The scale and the zero-point of a layer's input."""
    found = model.module.get_submodule(layer)
    assert isinstance(found, QuantLayer)
    assert isinstance(found.activation, ActivationQuantizer)
    assert found.activation.static is not None
    return found.activation.static.scale, found.activation.static.zero_point


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: layer.codes for name, layer in model.module.named_modules() if isinstance(layer, QuantLayer)}


def propagated(model: Model, inputs: Any, recipe: Recipe, formats: Scheme) -> Model:
    return quantize(Task(model, uncollected(inputs, 4), formats), recipe, propagate=True)


@pytest.mark.parametrize("method", ["minmax", "smoothquant", "gptq", "awq"])
def test_a_block_is_calibrated_on_what_quantized_blocks_write(method: str, tiny: LanguageModel, windows: Windows) -> None:
    """The oracle quantizes the first block alone, and calibrates the second one in the model that results."""
    recipe = named(method)
    inputs = windows.calibration[:6]
    found = propagated(tiny, inputs, recipe, STATIC)

    of_floats = collect(tiny.module, tiny.body, tiny.topology.sites, inputs, needs=COLLECTORS)
    first = quantize_part(Task(tiny, of_floats, replace(STATIC, layers=("*.0.*",))), recipe)
    of_both = collect(first.module, first.body, [site for site in tiny.topology.sites if ".1." in site], inputs, needs=COLLECTORS)
    sites = {site: one for site, one in of_floats.inputs.items() if ".0." in site} | of_both.inputs
    halfway = tiny.with_module(first.module, None)
    second = quantize_part(Task(halfway, replace(of_both, inputs=sites), replace(STATIC, layers=("*.1.*",))), recipe)
    plain = quantize(Task(tiny, of_floats, STATIC), recipe)

    moved = 0
    for name, codes in weights(found).items():
        for ours, theirs in zip(limits(found, name), limits(second, name), strict=True):
            assert torch.equal(ours, theirs), name
        assert torch.equal(codes, weights(second)[name]), name
        moved += not all(torch.equal(a, b) for a, b in zip(limits(found, name), limits(plain, name), strict=True))
    assert len(weights(found)) == 14
    assert moved > 0
    assert [entry["layer"] for entry in found.report["per_layer"]] == list(tiny.topology.layers)


@pytest.mark.parametrize("method", ["smoothquant", "gptq"])
def test_a_model_on_disk_propagates_as_the_same_model_in_memory(
    method: str, tiny: LanguageModel, tiny_folder: Path, windows: Windows
) -> None:
    results = []
    for model in (tiny, streamed(tiny_folder)):
        quantized = propagated(model, windows.calibration[:4], named(method), STATIC)
        results.append(perplexity(quantized, windows, perplexity(model, windows)))
    assert results[0].metrics == results[1].metrics
    assert results[0].model.report["per_layer"] == results[1].model.report["per_layer"]


def test_ranges_after_a_transform_are_collected_again_from_a_model_on_disk(
    tiny: LanguageModel, tiny_folder: Path, windows: Windows
) -> None:
    results = []
    for model in (tiny, streamed(tiny_folder)):
        statistics = api.calibrate(model, windows.calibration[:4])
        quantized = api.quantize(model, statistics, "smoothquant", "w8a8", ranges="mse")
        results.append(perplexity(quantized, windows, perplexity(model, windows)))
    assert results[0].metrics == results[1].metrics


def test_layers_around_the_blocks_are_quantized_in_their_turn(vit: Lab) -> None:
    inputs = next(vit.train.batches(32)).images
    found = propagated(vit.model, inputs, named("minmax"), STATIC)
    outside = [name for name in vit.model.topology.layers if not name.startswith("blocks.")]
    assert {name for name, _ in found.module.named_modules() if name in outside} == set(outside)
    assert weights(found).keys() == set(vit.model.topology.layers)
    last = outside[-1]
    rest = tuple(name for name in vit.model.topology.layers if name != last)
    before = propagated(vit.model, inputs, named("minmax"), replace(STATIC, layers=rest))
    seen = collect(before.module, before.body, [last], inputs).inputs[last]
    ours, _ = limits(found, last)
    alone = quantize(
        Task(vit.model, replace(uncollected(inputs, 4), inputs={last: seen}), replace(STATIC, layers=(last,))), named("minmax")
    )
    assert torch.equal(ours, limits(alone, last)[0])
    assert len(outside) > 1  # the patches and the classifier


def test_a_float_recipe_has_nothing_to_propagate(tiny: LanguageModel, windows: Windows) -> None:
    found = propagated(tiny, windows.calibration[:1], named("fp"), STATIC)
    assert found.module is tiny.module


def test_models_without_blocks_are_refused(cnn: Lab) -> None:
    with pytest.raises(UserError, match=r"has no list of blocks that holds most of its layers; use calibration"):
        propagated(cnn.model, next(cnn.train.batches(4)).images, named("minmax"), STATIC)
    with pytest.raises(UserError, match=r"has no list of blocks"):  # before anything is computed
        check(cnn.model, named("minmax"), STATIC, propagate=True)
    check(cnn.model, named("fp"), STATIC, propagate=True)


def test_statistics_without_inputs_are_refused(tiny: LanguageModel, windows: Windows) -> None:
    statistics = replace(uncollected(windows.calibration[:1], 1), seen=None)
    with pytest.raises(UserError, match=r"^calibration\.propagate=true: these statistics do not know their inputs"):
        quantize(Task(tiny, statistics, STATIC), named("minmax"), propagate=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=vit_nano", "data=mnist5k", "method=qat"), "method=qat trains the whole model at once"),
        (("model=vit_nano", "data=mnist5k", "method=minmax", "bits=w8a8", "bits.ops=full"), "use bits.ops=linear"),
        (("method=minmax", "bits=w8a8", "calibration.source=weights"), "calibration.source=weights reads no input"),
        (("method=rtn", "mixed=auto", "budget=4"), "mixed=auto chooses widths from what the float model reads"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.configure("calibration.propagate=true", *overrides)


@pytest.mark.slow  # four points, each from calibration to record
def test_a_sweep_with_and_without_propagation(command: Callable[..., Ended], results: Path) -> None:
    keys = ("rounding=gptq", "bits=w4a16", "bits.weights.group_size=32", "calibration.propagate=false,true")
    ended = command("-m", "method=rtn,smoothquant", *keys)
    assert ended.code == 0, ended.err
    records = list(Store(results).records())
    assert len(records) == 4
    frame = results_frame(records)
    assert set(frame["propagate"]) >= {"", "true"}
    assert set(frame["rounding"]) >= {"gptq"}
    told = {
        (record.identity["method"]["name"], point_fields(record)["propagate"]): record.metrics["perplexity"] for record in records
    }
    assert len(set(told.values())) == 4
