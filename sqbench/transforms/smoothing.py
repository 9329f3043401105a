"""Smoothing: move the difficulty of activations into the weights (SmoothQuant, Xiao et al., 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.formats.params import Limits
from sqbench.models.folding import Group, divide_norm, multiply_inputs
from sqbench.parts.part import Effort, parse_alpha
from sqbench.parts.task import Task
from sqbench.quant.access import weight_of
from sqbench.transforms.base import TRANSFORMS, Move, Transform
from sqbench.transforms.search import block_losses, raced

AUTO_GRID = tuple(round(0.05 * step, 2) for step in range(21))
SMALLEST = 1e-5  # lower bound of weight maxima and of scales, as in the public implementation


def smoothing_scale(act_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """The scales s_j = max|X_j|^alpha / max|W_:,j|^(1 - alpha) (eq. 4): [channels]. 1 where the calibration saw only zeros."""
    scale = act_absmax.pow(alpha) / weight_absmax.clamp(min=SMALLEST).pow(1 - alpha)
    return torch.where(act_absmax > 0, scale.clamp(min=SMALLEST), torch.ones_like(scale))


def column_absmax(linears: Sequence[nn.Module]) -> Tensor:
    """The largest |W_:,j| over all linears that read a tensor: [in_features] float32."""
    return torch.stack([weight_of(linear).float().abs().amax(0) for linear in linears]).amax(0)


@torch.no_grad()
def smooth_ln_fcs(norm: nn.Module, linears: nn.Module | Sequence[nn.Module], act_scales: Tensor, alpha: float = 0.5) -> Tensor:
    """Smooth one norm and the linears that read its output, in place. The float function does not change.

    Args:
        norm: LayerNorm or RMSNorm. Its weight, and its bias if it has one, are divided by s.
        linears: every linear that reads the norm's output. Their columns are multiplied by s.
        act_scales: [channels] absmax of the norm's output over the calibration set.
        alpha: migration strength. 0 leaves the difficulty with the activations, 1 moves all of it into the weights.

    Returns:
        s, [channels] float32.
    """
    readers = [linears] if isinstance(linears, nn.Module) else list(linears)
    assert all(weight_of(reader).shape[1] == act_scales.numel() for reader in readers), "one scale per input channel"
    scale = smoothing_scale(act_scales.float(), column_absmax(readers), alpha)
    divide_norm(norm, scale)
    for reader in readers:
        multiply_inputs(reader, scale)
    return scale


@TRANSFORMS.register("smooth")
@dataclass(frozen=True)
class Smooth(Transform):
    """Smooth norm -> linears groups. With `pairs`, also smooth linear -> linear pairs (up -> down, v -> o), beyond the paper.

    Attributes:
        alpha: migration strength. `auto` takes for each group the value with the least quantized block-output error.
        pairs: smooth proven pairs too.
        pair_alpha: the migration strength of pairs, or `auto`.
    """

    alpha: Any = 0.5
    pairs: bool = False
    pair_alpha: Any = 0.7

    def __post_init__(self) -> None:
        for key in ("alpha", "pair_alpha"):
            object.__setattr__(self, key, parse_alpha(getattr(self, key), key))  # "0.5" and -0.0 are other words for a number

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        searches = (self.alpha == "auto") + 0.4 * (self.pairs and self.pair_alpha == "auto")
        return Effort(searches * len(AUTO_GRID), searches * raced(len(AUTO_GRID)))

    def changes(self, task: Task) -> list[Move]:
        pairs = task.model.topology.pairs
        if not task.model.topology.groups and not (self.pairs and pairs):
            refused = (
                "; ".join(f"{name}: {reason}" for name, reason in task.topology.refused[:3]) or "no linear reads a norm's output"
            )
            instead = f"; use method.pairs=true, which smooths its {len(pairs)} linear -> linear pairs" if pairs else ""
            raise UserError(f"method=smoothquant: {task.model.name} has no norm -> linear group to smooth ({refused}){instead}")
        moves = self._smooth(task, task.topology.groups, self.alpha)
        return moves + self._smooth(task, task.topology.pairs, self.pair_alpha) if self.pairs else moves

    def _smooth(self, task: Task, groups: Sequence[Group], alpha: Any) -> list[Move]:
        def scale(group: Group, strength: float) -> Tensor:
            readers = [task.model.module.get_submodule(name) for name in group.readers]
            absmax, columns = group.gather(task.stats(group).absmax), group.gather(column_absmax(readers))
            return smoothing_scale(absmax, columns, strength)

        if alpha != "auto":
            return [Move(group, scale(group, alpha), alpha, {}) for group in groups]

        def limits(group: Group, candidate: Tensor) -> Limits:
            stats, spread = task.stats(group), group.spread(candidate)
            return (stats.low / spread).min().clamp(max=0), (stats.high / spread).max().clamp(min=0)

        losses = block_losses(task, groups, lambda group: [scale(group, strength) for strength in AUTO_GRID], limits)
        chosen = {group: AUTO_GRID[int(loss.argmin())] for group, loss in losses.items()}
        return [Move(group, scale(group, chosen[group]), chosen[group], {"loss": float(losses[group].min())}) for group in groups]
