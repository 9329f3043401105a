"""One layer or smoothing group of a model as arrays, before and after its scale is folded. `sqbench.plot` draws them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sqbench import data, models
from sqbench.calibration import calibrate
from sqbench.calibration.collect import CalibrationError, as_batches, replay_sample
from sqbench.config import device_of
from sqbench.errors import UserError, closest
from sqbench.formats.format import Format
from sqbench.formats.params import bounds, qparams
from sqbench.models import Model
from sqbench.models.folding import Group, fold, share
from sqbench.parts.task import Task
from sqbench.quant.access import channels_last, weight_of
from sqbench.ranges import RANGES
from sqbench.recipes.configured import method_names, named
from sqbench.recipes.recipe import Recipe
from sqbench.reporting.divisions import Division
from sqbench.reporting.surfaces import Tensors
from sqbench.running import assembly
from sqbench.running.resolved import resolve
from sqbench.statistics.inputs import MissingStatistics
from sqbench.transforms.base import Move
from sqbench.transforms.smoothing import column_absmax


@dataclass(frozen=True)
class Inspected:
    """A loaded and calibrated model, the recipe to look at, and a few inputs.

    Attributes:
        calibrated: number of calibration batches that the statistics saw.
    """

    task: Task
    recipe: Recipe
    inputs: Tensor
    calibrated: int

    @property
    def model(self) -> Model:
        return self.task.model

    def move(self, group: Group) -> Move | None:
        """The move of the recipe in a group; None if it moves nothing there."""
        changes = (change for transform in self.recipe.transforms for change in transform.changes(self.task))
        return next((change for change in changes if isinstance(change, Move) and change.group == group), None)


def inspected(cfg: DictConfig, examples: int | None, folder: Path) -> Inspected:
    """Load and calibrate as a run with this configuration does. The statistics are shared in `folder`.

    Args:
        examples: inputs to look at; None is one text window, or four images or sentences.

    Raises:
        UserError: the model or the data is not available.
    """
    resolved = resolve(cfg)
    source = models.locate(resolved.model, resolved.kind)
    assembly.check_window(resolved, source)
    bare = source.load(device_of(resolved.device))  # without the head that a run may fit, which nothing below reads
    model = assembly.preprocessed(bare, resolved)
    found = assembly.examples_of(data.fetch(resolved.data, resolved.calibration), model, source, resolved)
    search = assembly.search_size(resolved)
    try:
        statistics = calibrate(model, found.calibration, search=search, folder=folder / "calibration")
    except CalibrationError as error:
        raise UserError(f"model={model.name}: {error}") from error
    batches = as_batches(found.calibration)
    inputs = replay_sample(batches, examples or {"text": 1, "images": 4, "sentences": 4}[model.kind])
    return Inspected(Task(model, statistics, resolved.scheme), resolved.recipe, inputs, len(batches))


def shown_format(fmt: Format | None) -> Format:
    """The format whose clipping range a picture shows. It has one static range for the tensor, unlike some schemes."""
    return replace(fmt or Format(), granularity="tensor", group_size=None, dynamic=False)


@torch.no_grad()
def states_of(seen: Inspected, layer: str, ranges: str) -> tuple[list[Tensors], str]:
    """A layer's input and weight, before and, if the method moves a scale there, after smoothing. Also a sentence on what was done.

    Args:
        ranges: the method whose clipping range of the input is shown.

    Raises:
        UserError: an unknown layer or range method.
    """
    topology = seen.task.topology
    if layer not in topology.layers:
        raise UserError(f"layer={layer}: {closest(layer, topology.layers)}")
    module = seen.model.module.get_submodule(layer)
    activation, weight = _captured(seen, layer), weight_of(module).float()
    stats = seen.task.statistics.inputs[topology.site[layer]]
    fmt = shown_format(seen.task.scheme.activations)
    told = RANGES.find(ranges)()
    rough: list[str] = []  # states whose range is only that of the sample rows

    def state(name: str, scale: Tensor) -> Tensors:
        columns = weight * scale if name == "smoothed" else weight  # the columns of a convolution are no input channels
        scaled = stats.scaled(scale) if name == "smoothed" else stats
        try:
            limits = told.activation_limits(scaled, fmt)
        except MissingStatistics:  # this range reads what no scale can be pushed through
            limits = told.activation_limits(scaled.approximated(), fmt)
            rough.append(name)
        params = qparams(*limits, fmt)
        low, high = (float(end) for end in bounds(params, fmt))
        ranges = _array(scaled.absmax), _array(columns.abs().amax(0))
        return Tensors(name, _array(activation / scale), _array(columns.t()), *ranges, (low, high))

    ones = torch.ones(activation.shape[1], device=activation.device)
    original = state("original", ones)
    group = next((group for group in (*topology.groups, *topology.pairs) if layer in group.readers), None)
    move = None if group is None else seen.move(group)
    if group is None or move is None:
        why = f"{seen.recipe.name} moves nothing there" if group else "it is in no smoothing group"
        return [original], f"Not smoothed: {why}"
    states = [original, state("smoothed", group.spread(move.scale).float())]
    about = f"; its {ranges} range is estimated from the sample rows" * bool(rough)
    return states, f"Smoothed: {group}, alpha {move.alpha:.4g}{about}"


@torch.no_grad()
def division_of(seen: Inspected, name: str | None) -> tuple[Group, Division, float, float]:
    """A group, the arrays that folding its scale changes, its alpha, and the relative change of the model's output.

    Args:
        name: a norm, or a layer that reads one; None is the model's first group.

    Raises:
        UserError: no such group, or the method moves nothing.
    """
    groups = seen.task.topology.groups
    if not groups:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in seen.task.topology.refused[:3])
        raise UserError(f"divided: {seen.model.name} has no norm -> linear group ({reasons or 'no linear reads a norm'})")
    group = next((group for group in groups if name in (None, group.source, *group.readers)), None)
    if group is None:
        names = [place for group in groups for place in (group.source, *group.readers)]
        raise UserError(f"layer={name}: {closest(str(name), names)}. Groups: {'; '.join(map(str, groups))}")
    move = seen.move(group)
    if move is None:
        able = ", ".join(other for other in method_names() if named(other).transforms)
        raise UserError(f"method={seen.recipe.name}: moves nothing between {group}; {able} do")
    folded = share(seen.model.module)
    fold(folded, group, move.scale)
    tops: list[Any] = [module.get_submodule(group.source) for module in (seen.model.module, folded)]
    readers = [[module.get_submodule(reader) for reader in group.readers] for module in (seen.model.module, folded)]
    absmax, biases = seen.task.stats(group).absmax, [getattr(norm, "bias", None) for norm in tops]
    division = Division(
        scale=_array(move.scale),
        norm=_pair([norm.weight + group.offset for norm in tops]),
        bias=None if biases[0] is None else _pair(biases),
        activation=_pair([absmax, absmax / move.scale]),
        columns=_pair([column_absmax(linears) for linears in readers]),
    )
    plain = seen.model.forward(seen.inputs).double()
    changed = seen.model.with_module(folded, None).forward(seen.inputs).double()
    error = float((plain - changed).abs().max() / plain.abs().max().clamp(min=1e-30))
    return group, division, move.alpha, error


def _captured(seen: Inspected, layer: str) -> Tensor:
    """The input of a layer while the inputs run through the model: [tokens, channels] float32."""
    module = seen.model.module.get_submodule(layer)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(channels_last(module, args[0]).flatten(0, -2).float())

    handle = module.register_forward_pre_hook(keep)
    try:
        seen.model.body(seen.inputs)
    finally:
        handle.remove()
    return torch.cat(kept)


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def _pair(tensors: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    before, after = (_array(x.detach()) for x in tensors)
    return before, after
