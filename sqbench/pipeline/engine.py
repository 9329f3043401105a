"""The block engine. A model is quantized block by block, and a model that needs no blocks is a single one.

Two things need blocks. A model that is never whole in memory has one block there at a time (`blockwise=true`). Propagated
calibration reads what the quantized blocks before a block write, so a block must wait for these (`calibration.propagate=true`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sqbench.calibration import Statistics, observe
from sqbench.calibration.blocks import as_states
from sqbench.console.progress import track
from sqbench.data.base import Batches
from sqbench.errors import UserError
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.block import BlockModel
from sqbench.models.blocks import Blocks, HeldBlocks, held_blocks, merge_reports, place_of
from sqbench.models.folding import share
from sqbench.models.streaming import StreamedModel
from sqbench.models.tracing import trace_calls
from sqbench.parts.layer_formats import check_widths
from sqbench.parts.task import Task
from sqbench.pipeline.quantize import quantize_part
from sqbench.pipeline.report import begin_report, empty_report, unreached_experts, warn_of_unreached
from sqbench.pipeline.slots import slots_of, with_slots
from sqbench.recipes.recipe import Recipe
from sqbench.statistics import LOST, complete, outliers

ASKED, OTHERWISE = "calibration.propagate=true", "use calibration.propagate=false"


def quantize(task: Task, recipe: Recipe, *, propagate: bool = False) -> Model:
    """The model of a task, quantized by a recipe. The float model does not change.

    Blocks of a model that is read block by block are quantized each time that inputs go through them, and are not kept. Its report
    is complete after inputs went through all blocks. The numbers are those of the same model in memory.

    Args:
        propagate: whether each block is calibrated on what the quantized blocks before it write. The error that a search minimises
            is then that of the block's output on these inputs, against the float block's. Memory holds the hidden states of all
            calibration inputs.

    Raises:
        UserError: a group size does not divide a layer, or a part of the recipe finds nothing to work on. With `propagate`, the
            model has no blocks, or the task's statistics do not know their inputs.
    """
    if recipe.is_float:
        return task.model.with_module(task.model.module, empty_report())
    propagate = propagate and not task.scheme.is_float
    if propagate and task.statistics.seen is None:
        raise UserError(f"{ASKED}: these statistics do not know their inputs; use those of calibrate(model, inputs)")
    check_widths(task)
    check(task.model, recipe, task.scheme, propagate=False)  # blocks are proven where they are made
    return with_slots(_layers_quantized(task, recipe, propagate), task.scheme)


def check(model: Model, recipe: Recipe, scheme: Scheme, *, propagate: bool) -> None:
    """Raise UserError if a model has no such layers, no such embedding or head, or no blocks, as far as it shows by itself."""
    model.topology.restricted(scheme.layers)
    if recipe.is_float:
        return
    slots_of(model, scheme)
    if propagate and not scheme.is_float and not isinstance(model, StreamedModel):
        held_blocks(model, ASKED, OTHERWISE)


def _layers_quantized(task: Task, recipe: Recipe, propagate: bool) -> Model:
    if isinstance(task.model, StreamedModel):
        report = begin_report(task)
        if not propagate and (unreached := unreached_experts(task)):
            report["unreached"] = unreached
            warn_of_unreached(task.model.name, report)
        return task.model.then(BlockStep(task, recipe, task.model.blocks, propagate), report)
    if propagate:
        return _propagated(task, recipe)
    quantized, report = quantize_part(task, recipe), begin_report(task)
    merge_reports(report, [quantized.report])
    warn_of_unreached(task.model.name, report)
    return quantized.with_module(quantized.module, report)


class BlockStep:
    """Quantizes float blocks, which come in order. The task is that of the whole model.

    Attributes:
        sample: the hidden states of the replay sample that the next block reads.
        states: those of all calibration inputs, if the blocks need them.
    """

    sample: Tensor
    states: list[Tensor]

    def __init__(self, task: Task, recipe: Recipe, blocks: Blocks, propagate: bool) -> None:
        self.task, self.recipe, self.blocks, self.propagate = task, recipe, blocks, propagate
        self.needs = complete(recipe.needs(task.scheme) | outliers.NEEDS)
        loses = bool(recipe.transforms) and bool(recipe.needs(task.scheme) & LOST)
        self.seen = task.statistics.seen if propagate or loses else None

    @torch.no_grad()
    def __call__(self, block: Model) -> Model:
        assert isinstance(block, BlockModel)
        if block.number == 0:
            self.sample = self.blocks.enter(self.task.statistics.sample)
            self.states = [self.blocks.enter(batch) for batch in self.seen or ()]
        own = tuple(name for name in self.task.topology.layers if name.startswith(f"{block.place}."))
        quantized = self._quantized(block, own) if own else block
        before = quantized if self.propagate else block  # whose output the next block reads
        self.sample = before.body(self.sample)
        for number, hidden in enumerate(self.states):
            self.states[number] = before.body(hidden)
        return quantized

    def _quantized(self, block: BlockModel, own: tuple[str, ...]) -> Model:
        statistics = replace(self.task.statistics, sample=self.sample, seen=as_states(self.states) if self.states else None)
        if self.propagate:
            sites = [site for site in block.topology.sites if site.startswith(f"{block.place}.")]
            found = observe(block.module, block.body, self.needs, sites, as_states(self.states))
            statistics = replace(statistics, inputs=found)
        return quantize_part(Task(block, statistics, replace(self.task.scheme, layers=own)), self.recipe)


def _propagated(task: Task, recipe: Recipe) -> Model:
    """A model in memory: what is before the blocks, then each block, then what is after them."""
    row = held_blocks(task.model, ASKED, OTHERWISE)
    original, task = task.model, replace(task, model=row.model)
    report = begin_report(task)
    seen = task.statistics.seen
    assert seen is not None
    first, last = _outside(task, row)
    model, reports = row.model, []
    needs = complete(recipe.needs(task.scheme) | outliers.NEEDS)

    def quantized_outside(model: Model, own: Sequence[str], run: Callable[[Any], Any], inputs: Batches) -> Model:
        sites = list(dict.fromkeys(task.topology.site[name] for name in own))
        found = observe(model.module, run, needs, sites, inputs)
        known = Statistics(found, task.statistics.sample)
        return quantize_part(Task(model, known, replace(task.scheme, layers=tuple(own))), recipe)

    if first:
        model = quantized_outside(model, first, row.enter, seen)
        reports.append(model.report)
        row = row.over(model)
    step = BlockStep(task, recipe, row, propagate=True)
    module = share(model.module)
    for number, place in enumerate(track(row.places, "blocks")):
        quantized = step(row.block(number))
        module.set_submodule(place, quantized.module.get_submodule(place))
        reports.append(quantized.report or {})
    model = model.with_module(module, None)
    if last:
        both: list[Any] = list(zip(seen, step.states, strict=True))
        end = row.over(model)
        model = quantized_outside(model, last, lambda pair: end.leave(*pair), Batches(len(both), both.__getitem__, ""))
        reports.append(model.report)
    merge_reports(report, reports)
    warn_of_unreached(original.name, report)
    return original.with_module(model.module, report)


def _outside(task: Task, row: HeldBlocks) -> tuple[list[str], list[str]]:
    """The layers to quantize before the blocks, and those after them."""
    outside = [name for name in task.topology.layers if not place_of(name, row.places)]
    before = set(trace_calls(row.module, lambda: row.enter(row.model.example())).layers) if outside else set()
    return [name for name in outside if name in before], [name for name in outside if name not in before]
