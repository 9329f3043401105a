"""Quantization of the tensors that no layer reads."""

import os
from collections.abc import Callable

from torch import nn

from sqbench.errors import UserError
from sqbench.models.folding import Group
from sqbench.parts.task import Task
from sqbench.quant import operations
from sqbench.quant.operations import Point


def quantized_points(task: Task) -> list[Point]:
    """The tensors that the scheme's op set quantizes, besides inputs of layers."""
    if task.scheme.activations is None:
        return []
    points = [point for point in task.topology.points if point.kind in operations.KINDS[task.scheme.ops]]
    if any(point.site not in task.statistics.inputs for point in points):
        raise UserError(f"bits.ops={task.scheme.ops}: the statistics hold no points; use calibrate(model, inputs, points=True)")
    return points


def crosses(group: Group, points: list[Point]) -> bool:
    """Whether channels moved between two layers may cross a quantized tensor: v -> o does, norm -> linears does not."""
    parent = os.path.commonpath([name.replace(".", "/") for name in (group.source, *group.readers)]).replace("/", ".")
    return group.kind == "pair" and any(f"{point.owner}.".startswith(f"{parent}." if parent else "") for point in points)


def place_points(module: nn.Module, points: list[Point], make: Callable[[Point], nn.Module]) -> None:
    """Put the quantizers that `make(point)` returns into the owners of points."""
    for owner in dict.fromkeys(point.owner for point in points):
        own = [point for point in points if point.owner == owner]
        operations.QuantizedOwner(module.get_submodule(owner), own, [make(point) for point in own])
