"""From a float model, or one block, to a quantized one: transform, then round and correct. Only this module replaces layers."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sqbench.console.progress import track
from sqbench.formats.format import Format
from sqbench.models.base import Model
from sqbench.models.folding import share
from sqbench.parts.layer_formats import bound_formats
from sqbench.parts.task import Task
from sqbench.pipeline.finite import check_scales, check_weight
from sqbench.pipeline.points import crosses, place_points, quantized_points
from sqbench.pipeline.report import describe_layer, unreached_experts
from sqbench.quant.access import kind_of, weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.quant.operations import Point
from sqbench.recipes.recipe import Recipe
from sqbench.statistics.inputs import InputStatistics
from sqbench.transforms.base import Change, Move
from sqbench.transforms.batchnorm import FoldBatchNorms
from sqbench.transforms.proof import sound


@torch.no_grad()
def quantize_part(task: Task, recipe: Recipe) -> Model:
    """A model or a block of one, quantized by a recipe. The float model does not change and shares all that is not replaced.

    The result's `report` has the layers with their signal-to-noise ratios and outliers, the groups with their exponents, and the
    refused groups with reasons.

    Raises:
        UserError: a part of the recipe finds nothing to work on.
    """
    changed, changes, refused = transformed(task, recipe)
    report: dict[str, Any] = {
        "groups": [entry for change in changes if (entry := change.about()) is not None],
        "refused": [{"group": name, "reason": reason} for name, reason in refused],
    }
    if task.scheme.is_float:
        return task.model.with_module(changed.model.module, report)
    module = share(changed.model.module)
    # The task has the module whose layers are replaced, so that a moved weight is freed when its layer is.
    changed = replace(changed, model=changed.model.with_module(module, None))
    report["per_layer"] = _replace_layers(module, changed, recipe)
    if unreached := unreached_experts(task):
        report["unreached"] = unreached
    place_points(module, quantized_points(task), lambda point: _point(recipe, task, point))
    return task.model.with_module(module, report)


def transformed(task: Task, recipe: Recipe) -> tuple[Task, list[Change], list[tuple[str, str]]]:
    """The task after all transforms of a recipe, the changes that were made, and the names of refused ones with reasons."""
    points = quantized_points(task)
    crossing = f"its channels cross a tensor that bits.ops={task.scheme.ops} quantizes, and whose range after scaling is not known"
    refused, made = list(task.topology.refused), []
    for transform in (*recipe.transforms, FoldBatchNorms()):
        free: list[Change] = []
        for change in transform.changes(task):
            if isinstance(change, Move) and crosses(change.group, points):
                refused.append((change.name, crossing))
            else:
                free.append(change)
        kept, wrong = sound(task, free)
        refused += wrong
        task = task.after(kept)
        made += kept
    return replace(task, statistics=task.statistics.regained(task.model, recipe.needs(task.scheme))), made, refused


def _replace_layers(module: nn.Module, task: Task, recipe: Recipe) -> list[dict[str, Any]]:
    """Replace the layers of a module, which shares the tensors of the task's model. Return their entries for the record."""
    assert recipe.rounding is not None
    formats, entries = bound_formats(task), []
    site = task.topology.site
    readers = Counter((site[name], activations) for name, (_, activations) in formats.items())
    by_window = "gram" in recipe.needs(task.scheme)
    quantizers: dict[tuple[str, Format | None], ActivationQuantizer | None] = {}
    for name, (weights, activations) in track(formats.items(), "quantize"):
        layer, stats = module.get_submodule(name), task.of_layer(name)
        key = site[name], activations
        if key not in quantizers:
            quantizers[key] = _activation(recipe, activations, stats, readers[key], layer)
        encoded, repaired = None, layer
        notes: dict[str, Any] = {}
        if weights is not None:
            if by_window:
                task.statistics.check_window(module, site[name], name)
            check_weight(name, weight_of(layer))
            limits = recipe.ranges.weight_limits(name, weight_of(layer), stats, weights)
            encoded, notes = recipe.rounding.encode(name, weight_of(layer), stats, weights, limits)
            check_scales(name, encoded)
            for correction in recipe.corrections:
                repaired, more = correction.correct(repaired, encoded, stats)
                notes |= more
        quantized = QuantLayer(repaired, encoded, quantizers[key])
        module.set_submodule(name, quantized)
        entries.append({**describe_layer(name, weight_of(layer), quantized, stats), **notes})
    return entries


def _activation(
    recipe: Recipe, fmt: Format | None, stats: InputStatistics, readers: int, layer: nn.Module
) -> ActivationQuantizer | None:
    if fmt is None:
        return None
    kind = kind_of(layer)
    limits = None if fmt.dynamic else recipe.ranges.activation_limits(stats, fmt)
    return ActivationQuantizer(fmt, limits, readers, axis=-1 if kind is None else kind.axis)


def _point(recipe: Recipe, task: Task, point: Point) -> ActivationQuantizer:
    assert task.scheme.activations is not None  # a point reads no groups, so its format has one level of scales
    fmt = task.scheme.activations.ungrouped("token")
    limits = None if fmt.dynamic else recipe.ranges.activation_limits(task.statistics.inputs[point.site], fmt)
    return ActivationQuantizer(fmt, limits)
