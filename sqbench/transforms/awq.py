"""Activation-aware scaling: protect the weights of channels with large activations (AWQ, Lin et al., 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqbench.errors import UserError
from sqbench.formats.codec import to_blocks
from sqbench.models.folding import Group
from sqbench.parts.part import Effort, parse_alpha
from sqbench.parts.task import Task
from sqbench.quant.access import weight_of
from sqbench.transforms.base import TRANSFORMS, Move, Transform
from sqbench.transforms.search import FINALISTS, block_losses, raced

SMALLEST = 1e-4


@TRANSFORMS.register("awq")
@dataclass(frozen=True)
class ActivationAware(Transform):
    """Scale input channels by mean|X|^alpha, so that the weights of loud channels round with less error.

    Attributes:
        alpha: the exponent r. `auto` is the paper's search: per group, over `grid` values in [0, 1), on the block's output.
        grid: the number of values that `auto` tries.
        pairs: also scale proven linear -> linear pairs (v -> o, up -> down), as the paper does, not only norm groups.
        duo: scale by x^r / w^(1-r), the paper's first version and the default of two toolkits.
    """

    alpha: Any = "auto"
    grid: int = 20
    pairs: bool = True
    duo: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", parse_alpha(self.alpha))  # "0.5" and -0.0 are other words for a number
        self.require("grid", self.grid >= 1, "must be 1 or more, 20 is the paper's")

    def scale(self, task: Task, group: Group, exponent: float) -> Tensor:
        """The scale s = mean|X|^r, normalised by sqrt(max * min): [channels of the source] float32."""
        scale = group.gather(task.stats(group).abs_mean).pow(exponent)
        if self.duo:
            readers = [task.model.module.get_submodule(name) for name in group.readers]
            weight = torch.cat([weight_of(reader).float() for reader in readers])
            fmt = task.scheme.weights and task.scheme.weights.for_width(weight.shape[1], "channel")
            blocks = to_blocks(weight, fmt) if fmt is not None and fmt.granularity == "group" else weight
            relative = (blocks.abs() / blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30)).view(weight.shape).mean(0)
            scale = scale / group.gather(relative).clamp(min=SMALLEST).pow(1 - exponent)
        scale = scale.clamp(min=SMALLEST)
        return scale / (scale.max() * scale.min()).sqrt()

    def changes(self, task: Task) -> list[Move]:
        found = task.model.topology
        if not (found.groups or (self.pairs and found.pairs)):
            refused = (
                "; ".join(f"{name}: {reason}" for name, reason in task.topology.refused[:3]) or "no linear reads a norm's output"
            )
            raise UserError(f"method=awq: {task.model.name} has no group whose scales can move ({refused}); use method=rtn")
        groups = [*task.topology.groups, *(task.topology.pairs if self.pairs else ())]
        if task.scheme.weights is None:
            return []  # no weight is rounded, so none needs protection
        if self.alpha != "auto":
            return [Move(group, self.scale(task, group, self.alpha), self.alpha, {}) for group in groups]
        exponents = [step / self.grid for step in range(self.grid)]
        losses = block_losses(task, groups, lambda group: [self.scale(task, group, r) for r in exponents])
        moves = []
        for group in groups:
            best = int(losses[group].argmin())
            about = {"loss": float(losses[group][best]), "loss_rtn": float(losses[group][0])}
            moves.append(Move(group, self.scale(task, group, exponents[best]), exponents[best], about))
        return moves

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        if not scheme.get("weights"):
            return Effort()
        if self.alpha != "auto":
            return Effort()
        tried = self.grid + min(self.grid, FINALISTS + 1)
        return Effort(tried, raced(self.grid) * (1.4 if self.pairs else 1.0))  # a pair's block is only its reader
