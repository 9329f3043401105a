"""Clipping of weights by the error of a layer's outputs (AWQ, Lin et al., 2023, section 3.2 of the code release)."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from math import gcd
from typing import Any

import torch
from torch import Tensor

from sqbench.formats.codec import fake_quantize, from_blocks, of_tensor, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, block_range, qparams
from sqbench.formats.scheme import Scheme
from sqbench.parts.part import Effort
from sqbench.ranges.base import RANGES, Ranges
from sqbench.statistics.inputs import InputStatistics

CLIP_RATIOS = tuple(round(1.0 - 0.05 * step, 2) for step in range(10))  # 1.0 to 0.55
CLIP_ROWS = 384  # rows of a weight at once, so few that they stay in a core's cache through all ten ratios


@RANGES.register("clip")
@dataclass(frozen=True)
class Clip(Ranges):
    """Weights are clipped where that lowers the error of the layer's outputs. Activations have min-max ranges.

    Attributes:
        clip: search a clipping ratio per (output channel, group). False takes min-max ranges.
        no_clip: fnmatch patterns of layers that are not clipped. Clipping harms products of two clipped tensors (q k^T).
    """

    clip: bool = True
    no_clip: tuple[str, ...] = ()

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        # each ratio rounds the weight, and multiplies its error with the Gram blocks
        return Effort(2.0 * len(CLIP_RATIOS) * (self.clip and bool(scheme.get("weights"))))

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return frozenset({"blocks"}) if self.clip and scheme.weights is not None else frozenset()

    def weight_limits(self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format) -> Limits | None:
        if not self.clip or any(fnmatch(layer, pattern) for pattern in self.no_clip):
            return None
        if stats.blocks.shape[0] * stats.blocks.shape[1] != weight.shape[1]:
            return None  # a convolution's columns are pixels of a patch, which the Gram blocks do not cover
        return clip_limits(weight, stats.blocks, fmt)


def clip_limits(weight: Tensor, gram: Tensor, fmt: Format) -> Limits:
    """For each block of a weight, the symmetric clipping of |w| (ratios 1.0 to 0.55 of its maximum) with the least output error.

    The error of a block is d^T (X^T X) d for the weight error d. If groups lie inside Gram blocks, this is exact over every
    calibration token. If groups are wider, cross terms between Gram blocks are left out.

    Args:
        weight: [out, in].
        gram: [in / b, b, b].
    """
    fmt, rows = of_tensor(fmt, weight), fmt.block_rows or 1
    at_once = max(CLIP_ROWS // rows, 1) * rows
    if fmt.granularity != "tensor" and len(weight) > at_once:  # rows are independent of each other
        pieces = [clip_limits(piece, gram, fmt) for piece in weight.split(at_once)]
        return torch.cat([lo for lo, _ in pieces]), torch.cat([hi for _, hi in pieces])
    blocks = to_blocks(weight, fmt)
    lo, hi = block_range(blocks, fmt)
    largest = torch.maximum(-lo, hi)
    width = gram.shape[1] if fmt.group_size is None else gcd(fmt.group_size, gram.shape[1])
    inner = _sub_blocks(gram, width)
    best_error = torch.full_like(lo, torch.inf)
    best = largest
    for ratio in CLIP_RATIOS:
        bound = largest * ratio
        rounded = fake_quantize(blocks, qparams(torch.maximum(lo, -bound), torch.minimum(hi, bound), fmt), fmt)
        error = from_blocks(rounded - blocks, fmt, weight.shape)
        error = error.float().unflatten(1, (-1, width)).transpose(0, 1)  # [in / width, out, width]
        cost = (torch.bmm(error, inner) * error).sum(-1).t()  # [out, in / width]
        cost = cost.reshape(-1, rows, cost.shape[1]).sum(1)  # rows of two-dimensional blocks share a scale
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
