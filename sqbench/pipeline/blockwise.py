"""Quantization block by block of a model that is never whole in memory. The numbers are the same as for the whole model."""

from dataclasses import replace

import torch
from torch import Tensor

from sqbench.models.base import Model
from sqbench.models.block import BlockModel
from sqbench.models.streaming import StreamedModel
from sqbench.pipeline.layer_formats import check_widths
from sqbench.pipeline.quantize import quantize
from sqbench.pipeline.report import empty_report, sizes, warn_of_floats
from sqbench.recipes.recipe import Recipe
from sqbench.recipes.task import Task


def quantize_blockwise(task: Task, recipe: Recipe) -> StreamedModel:
    """The model that `quantize` returns. A block is quantized each time that inputs go through it, and is not kept.

    The report is complete after inputs went through all blocks.

    Raises:
        UserError: a group size does not divide a layer. Other errors of `quantize` are raised at the first block.
    """
    assert isinstance(task.model, StreamedModel)
    check_widths(task)
    report = empty_report() | sizes(task)
    report["refused"] = [{"group": name, "reason": reason} for name, reason in task.topology.refused]
    warn_of_floats(task)
    return task.model.then(BlockQuantizer(task, recipe), report)


class BlockQuantizer:
    """Quantizes a float block. The task is that of the model, restricted to the block's layers.

    Hidden states of the replay sample go through the float blocks, so a search sees the same states as in the whole model.
    """

    hidden: Tensor

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe = task, recipe

    @torch.no_grad()
    def __call__(self, block: Model) -> Model:
        assert isinstance(block, BlockModel)
        assert isinstance(self.task.model, StreamedModel)
        if block.number == 0:
            self.hidden = self.task.model.enter(self.task.statistics.sample)
        own = tuple(name for name in self.task.topology.layers if name.startswith(f"{block.place}."))
        statistics, scheme = replace(self.task.statistics, sample=self.hidden), replace(self.task.scheme, layers=own)
        quantized = quantize(Task(block, statistics, scheme), self.recipe) if own else block
        self.hidden = block.forward(self.hidden)
        return quantized
