"""Bias correction: rounding must not shift the mean of a layer's outputs (Nagel et al., 2019, section 4.2)."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sqbench.corrections.base import CORRECTIONS, Correction
from sqbench.formats.codec import EncodedTensor, decode
from sqbench.quant.access import weight_of
from sqbench.statistics.inputs import InputStatistics


@CORRECTIONS.register("bias")
@dataclass(frozen=True)
class BiasCorrection(Correction):
    """Add E[(W - Q) x] to the bias, with the mean input of calibration. A layer without a bias gets one.

    A convolution has the same mean input under every tap of its kernel. Its zero padding is not regarded.
    """

    def correct(self, layer: nn.Module, encoded: EncodedTensor, stats: InputStatistics) -> tuple[nn.Module, dict[str, Any]]:
        error = weight_of(layer).double() - decode(encoded).double()  # [out, channels * taps]
        mean = stats.sum / max(stats.tokens, 1)  # [all channels]
        reads = layer.in_channels // layer.groups if isinstance(layer, nn.Conv2d) else len(mean)
        taps = error.shape[1] // reads
        groups = len(mean) // reads  # of a convolution; each reads its own channels
        by_group = error.view(groups, -1, reads, taps).sum(-1)  # [groups, out / groups, channels]
        shift = (by_group * mean.view(groups, 1, reads)).sum(-1).flatten()
        bias, repaired = layer.bias, copy.copy(layer)
        before = bias.detach().double() if isinstance(bias, Tensor) else shift.new_zeros(len(shift))
        repaired._parameters = {**layer._parameters}  # copy.copy shares the dictionary itself
        repaired._parameters["bias"] = nn.Parameter((before + shift).to(weight_of(layer).dtype), requires_grad=False)
        return repaired, {"bias_shift": float(shift.abs().max())}
