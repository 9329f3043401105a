"""AWQ: protect the weights of channels with large activations, by scale search and clipping (Lin et al., 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from math import gcd
from typing import Any, ClassVar

import torch
from torch import Tensor

from sqbench.errors import UserError
from sqbench.methods.base import Effort, Method, Move, Task, parse_alpha, register
from sqbench.methods.search import FINALISTS, block_losses, raced
from sqbench.models.folding import Group
from sqbench.quant import ranges
from sqbench.quant.affine import block_range, fake_quantize, qparams, to_blocks
from sqbench.quant.formats import Format, Scheme
from sqbench.quant.layers import weight_of
from sqbench.quant.statistics import InputStatistics

SMALLEST = 1e-4
CLIP_RATIOS = tuple(round(1.0 - 0.05 * step, 2) for step in range(10))  # 1.0 to 0.55
CLIP_ROWS = 384  # rows of a weight at once, so few that they stay in a core's cache through all ten ratios


@register("awq")
@dataclass(frozen=True)
class Awq(Method):
    """Scale input channels by mean|X|^alpha, round, and clip.

    Attributes:
        alpha: the exponent r. `auto` is the paper's search: per group, over `grid` values in [0, 1), on the block's output.
        grid: the number of values that `auto` tries.
        pairs: also scale proven linear -> linear pairs (v -> o, up -> down), as the paper does, not only norm groups.
        duo: scale by x^r / w^(1-r), the paper's first version and the default of two toolkits.
        clip: search a clipping ratio per (output channel, group) afterwards.
        no_clip: fnmatch patterns of layers that are not clipped. Clipping harms products of two clipped tensors (q k^T).
    """

    needs_alpha: ClassVar[bool] = True
    alpha: Any = "auto"
    grid: int = 20
    pairs: bool = True
    duo: bool = False
    clip: bool = True
    no_clip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_alpha(self.alpha)
        if self.grid < 1:
            raise UserError(f"method.grid={self.grid}: must be 1 or more, 20 is the paper's")

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

    def moves(self, task: Task) -> list[Move]:
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
        clipped = 2.0 * len(CLIP_RATIOS) * self.clip  # each ratio rounds the weight, and multiplies its error with the Gram blocks
        if self.alpha != "auto":
            return Effort(1 + clipped)
        tried = self.grid + min(self.grid, FINALISTS + 1)
        return Effort(1 + clipped + tried, raced(self.grid) * (1.4 if self.pairs else 1.0))  # a pair's block is only its reader

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return frozenset({"blocks"}) if self.clip and scheme.weights is not None else frozenset()

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> ranges.Limits | None:
        if not self.clip or any(fnmatch(layer, pattern) for pattern in self.no_clip):
            return None
        if stats.blocks.shape[0] * stats.blocks.shape[1] != weight.shape[1]:
            return None  # a convolution's columns are pixels of a patch, which the Gram blocks do not cover
        return clip_limits(weight, stats.blocks, fmt)


def clip_limits(weight: Tensor, gram: Tensor, fmt: Format) -> ranges.Limits:
    """For each block of a weight, the symmetric clipping of |w| (ratios 1.0 to 0.55 of its maximum) with the least output error.

    The error of a block is d^T (X^T X) d for the weight error d. If groups lie inside Gram blocks, this is exact over every
    calibration token. If groups are wider, cross terms between Gram blocks are left out.

    Args:
        weight: [out, in].
        gram: [in / b, b, b].
    """
    if fmt.granularity != "tensor" and len(weight) > CLIP_ROWS:  # rows are independent of each other
        pieces = [clip_limits(piece, gram, fmt) for piece in weight.split(CLIP_ROWS)]
        return torch.cat([lo for lo, _ in pieces]), torch.cat([hi for _, hi in pieces])
    blocks = to_blocks(weight, fmt)
    lo, hi = block_range(blocks)
    largest = torch.maximum(-lo, hi)
    width = gram.shape[1] if fmt.group_size is None else gcd(fmt.group_size, gram.shape[1])
    inner = _sub_blocks(gram, width)
    best_error = torch.full_like(lo, torch.inf)
    best = largest
    for ratio in CLIP_RATIOS:
        bound = largest * ratio
        rounded = fake_quantize(blocks, qparams(torch.maximum(lo, -bound), torch.minimum(hi, bound), fmt), fmt)
        error = (rounded - blocks).view(weight.shape).float().unflatten(1, (-1, width)).transpose(0, 1)  # [in / width, out, width]
        cost = (torch.bmm(error, inner) * error).sum(-1).t()  # [out, in / width]
        cost = cost.reshape(lo.shape[:-1].numel(), -1).sum(1).view(lo.shape)
        better = cost < best_error
        best_error = torch.where(better, cost, best_error)
        best = torch.where(better, bound, best)
    return torch.maximum(lo, -best), torch.minimum(hi, best)


def _sub_blocks(gram: Tensor, width: int) -> Tensor:
    """The smaller blocks on the diagonal of each block: [n, b, b] -> [n b / width, width, width]."""
    parts = gram.shape[1] // width
    if parts == 1:
        return gram
    tiles = gram.view(len(gram), parts, width, parts, width)
    return torch.stack([tiles[:, part, :, part] for part in range(parts)], dim=1).flatten(0, 1)
