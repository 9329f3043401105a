"""Quantization of a model that is never whole in memory: each block when its turn comes, with the same numbers as all at once."""

from dataclasses import replace

import torch
from torch import Tensor

from sqbench.methods.apply import empty_report, quantize, sizes, warn_of_floats
from sqbench.methods.base import Method, Task
from sqbench.methods.layer_formats import check_widths
from sqbench.models.base import Model
from sqbench.models.block import BlockModel
from sqbench.models.streaming import StreamedModel


def quantize_blockwise(task: Task, method: Method) -> StreamedModel:
    """What `quantize` makes of the same model. A block is quantized whenever inputs go through it, and not kept.

    The report is complete once inputs went through all blocks.

    Raises:
        UserError: a group size does not divide a layer; whatever else `quantize` finds, it finds at the first block.
    """
    assert isinstance(task.model, StreamedModel)
    check_widths(task)
    report = empty_report() | sizes(task)
    report["refused"] = [{"group": name, "reason": reason} for name, reason in task.topology.refused]
    warn_of_floats(task)
    return task.model.then(BlockQuantizer(task, method), report)


class BlockQuantizer:
    """From a float block to a quantized one: its task is that of the model, as far as its own layers go.

    Hidden states of the replay sample go along through the float blocks, as a search over the whole model would have them.
    """

    hidden: Tensor

    def __init__(self, task: Task, method: Method) -> None:
        self.task, self.method = task, method

    @torch.no_grad()
    def __call__(self, block: Model) -> Model:
        assert isinstance(block, BlockModel)
        assert isinstance(self.task.model, StreamedModel)
        if block.number == 0:
            self.hidden = self.task.model.enter(self.task.statistics.sample)
        own = tuple(name for name in self.task.topology.layers if name.startswith(f"{block.place}."))
        statistics, scheme = replace(self.task.statistics, sample=self.hidden), replace(self.task.scheme, layers=own)
        quantized = quantize(Task(block, statistics, scheme), self.method) if own else block
        self.hidden = block.forward(self.hidden)
        return quantized
