"""Quantization-aware training: its parameters and how the ranges move. `sqbench.training` does the training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sqbench.errors import UserError, known
from sqbench.formats.codec import EncodedTensor, of_tensor, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, block_range
from sqbench.formats.scheme import Scheme
from sqbench.parts.part import Effort
from sqbench.quant.trainable import LearnedStep, MovingRange, OwnRange, Range
from sqbench.ranges import estimators
from sqbench.ranges.base import with_static_inputs
from sqbench.rounding.base import ROUNDINGS, Rounding
from sqbench.statistics.inputs import InputStatistics


def own_limits(weight: Tensor, fmt: Format) -> Limits:
    """The minimum and maximum of each block of a weight."""
    return block_range(to_blocks(weight, fmt), fmt)


@ROUNDINGS.register("qat")
@dataclass(frozen=True)
class Qat(Rounding):
    """Straight-through gradients with min-max ranges. Static activations have a moving average of the batches' ranges.

    With a float scheme the float model takes the same steps. It is the control that separates the effect of training from that of
    quantization.

    Attributes:
        epochs: how often each training image is seen, at most.
        images: images of the training split to train and validate on. None is all of them.
        batch: images of one gradient step.
        lr: the peak learning rate of AdamW. It falls to 0 along a cosine.
        weight_decay: weight decay of weights with two or more axes. Biases, norms and ranges have none.
        distill: the share of the float model's logits in the loss. 0 learns only from labels, 1 only from the float model.
        temperature: the divisor of both models' logits in that part of the loss.
        freeze: the last share of all steps, in which BatchNorm statistics and moving ranges do not change.
        patience: training stops early after this many epochs without a lower validation loss. None never stops early.
        validation: the share of the images that is held out to choose the best epoch. With 0 the last epoch is used.
    """

    trains: ClassVar[bool] = True

    epochs: int = 10
    images: int | None = None
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    distill: float = 0.5
    temperature: float = 2.0
    freeze: float = 0.25
    patience: int | None = None
    validation: float = 0.1

    def __post_init__(self) -> None:
        self.require("epochs", self.epochs >= 1, "must be 1 or more")
        self.require("images", self.images is None or self.images >= 4, "must be 4 or more, or null for the whole training split")
        self.require("batch", self.batch >= 2, "must be 2 or more")
        self.require("lr", 0 < self.lr < 1, "must be a number between 0 and 1, 1e-3 for example")
        self.require("weight_decay", 0 <= self.weight_decay < 1, "must be a number from 0 to below 1")
        self.require("distill", 0 <= self.distill <= 1, "must be a share from 0 (labels alone) to 1 (the float model alone)")
        self.require("temperature", 0 < self.temperature <= 100, "must be a number above 0, up to 100")
        self.require("freeze", 0 <= self.freeze <= 1, "must be a share of the steps from 0 to 1")
        self.require("validation", 0 <= self.validation <= 0.5, "must be a share of the images from 0 to 0.5")
        self.require("patience", self.patience is None or self.patience >= 1, "must be 1 or more, or null to never stop early")
        nothing = self.patience is not None and self.validation == 0
        self.require("patience", not nothing, "needs images to validate on; use method.validation=0.1, or null here")

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        def learnt(images: int) -> tuple[int, int]:
            """The images and steps of training, split as in `sqbench.training.fit`."""
            taken = images if self.images is None else min(images, self.images)
            left = taken - math.ceil(self.validation * taken)
            batch = max(1, min(self.batch, left))
            steps = self.epochs * (left // batch)
            return steps * batch, steps

        return Effort(learnt=learnt)

    @property
    def range_lr(self) -> float:
        """The peak learning rate of learned ranges. Min-max ranges learn nothing."""
        return self.lr

    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        """Not without gradient steps.

        Raises:
            UserError: always.
        """
        raise UserError(f"rounding={self.name}: takes gradient steps, for which it needs images; use sqbench.train(...)")

    def weight_range(self, weight: Tensor, fmt: Format) -> Range:
        """The range that clips a weight [out, in], with BatchNorm folded, during training."""
        return OwnRange(fmt)

    def activation_range(self, stats: InputStatistics, fmt: Format) -> Range:
        """The range that clips an activation during training. Its statistics give the start."""
        return OwnRange(fmt) if fmt.dynamic else MovingRange(fmt, estimators.minmax(stats, fmt))


NEEDS = {"mse": "histogram"}  # the collector that a start reads besides those that always run

STARTS: dict[str, tuple[Callable[..., Limits], Callable[..., Limits]]] = {  # of activations, of weights
    "mean": (estimators.minmax, own_limits),
    "minmax": (estimators.minmax, own_limits),
    "mse": (estimators.mse, estimators.shrink_blocks),
}


@ROUNDINGS.register("qat_lsq")
@dataclass(frozen=True)
class QatLsq(Qat):
    """Learned step sizes (LSQ, Esser et al., 2020) of each weight block and each static activation.

    Steps are learned in the log domain. Zero-points stay those of the min-max range. A dynamic format has no step to learn, so its
    gradient passes straight through.

    Attributes:
        start: where steps start. `mean` is the paper's 2 mean|x| / sqrt(Qp). `minmax` and `mse` are the ranges of those methods.
        step_lr: learning rate of the steps' logarithms, as a multiple of `lr`.
    """

    start: str = "mse"
    step_lr: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("start", self.start in STARTS, known(str(self.start), STARTS))
        self.require("step_lr", 0 <= self.step_lr <= 1000, "must be a multiple of method.lr from 0 to 1000")

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return with_static_inputs(scheme, *([NEEDS[self.start]] if self.start in NEEDS else []))

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.weights is not None and scheme.weights.has_minimum:
            return "learns the steps of weights, and no minimum (bits.weights.zero_point=minimum); use zero_point=integer"
        return None

    @property
    def range_lr(self) -> float:
        return self.lr * self.step_lr

    def weight_range(self, weight: Tensor, fmt: Format) -> Range:
        fmt = of_tensor(fmt, weight)
        mean = to_blocks(weight, fmt).abs().mean(-1, keepdim=True)
        return LearnedStep(fmt, STARTS[self.start][1](weight, fmt), mean if self.start == "mean" else None)

    def activation_range(self, stats: InputStatistics, fmt: Format) -> Range:
        if fmt.dynamic:
            return OwnRange(fmt)
        low, high = (limit.reshape(1, 1) for limit in STARTS[self.start][0](stats, fmt))
        return LearnedStep(fmt, (low, high), stats.abs_mean.mean().reshape(1, 1) if self.start == "mean" else None)
