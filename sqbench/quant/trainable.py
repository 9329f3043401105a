"""Fake quantization that gradients pass through. Rounding is that of `codec`. Ranges follow the tensor or are learned.

A *range* decides the clipping range of blocks (`codec.to_blocks`) and how gradients pass. Training ends by reading its `limits`. A
`QuantLayer` and an `ActivationQuantizer` with these limits compute the same as the trained layer.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sqbench.formats.codec import fake_quantize, from_blocks, of_tensor, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, QParams, block_range, bounds, qparams
from sqbench.quant.access import kind_of
from sqbench.quant.layers import ActivationQuantizer, StandIn

MOMENTUM = 0.99  # of moving ranges, the value of torch.ao's MovingAverageMinMaxObserver


class StraightThrough(torch.autograd.Function):
    """`fake_quantize` with gradient 1 where the code is inside the format and 0 where it was clipped (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, params: QParams, fmt: Format) -> Tensor:
        # A value within half a step of the last code has that code. Without its gradient the largest weights could not move.
        low, high = bounds(params, fmt, beyond=0.5)
        ctx.save_for_backward((blocks >= low) & (blocks <= high))
        return fake_quantize(blocks, params, fmt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class LearnedStepSize(torch.autograd.Function):
    """`fake_quantize` with the gradients of LSQ (Esser et al., 2020, eq. 3 to 5), for v = x / s between the codes Qn and Qp.

    The gradient to x is 1 for Qn <= v <= Qp, else 0. The gradient to s is round(v) - v inside, and Qn or Qp outside. It is summed
    over the values that share s, and multiplied by `factor`.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, step: Tensor, params: QParams, fmt: Format, factor: float) -> Tensor:
        result = fake_quantize(blocks, params, fmt)
        scaled = blocks / params.scale
        inside = (scaled >= fmt.smallest - params.zero_point) & (scaled <= fmt.largest - params.zero_point)
        ctx.save_for_backward(inside, result / params.scale - scaled * inside, params.scale.sign())
        ctx.factor = factor
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, by_scale, sign = ctx.saved_tensors
        return grad * inside, (grad * by_scale).sum(-1, keepdim=True) * sign * ctx.factor, None, None, None


class Range(nn.Module):
    """Decides the clipping range of blocks and how gradients pass."""

    def __init__(self, fmt: Format) -> None:
        super().__init__()
        self.fmt = fmt

    @abstractmethod
    def limits(self, blocks: Tensor | None = None) -> Limits:
        """(lo, hi) for `params.qparams`, without gradient. Only ranges that follow the blocks need `blocks`."""

    def forward(self, blocks: Tensor, sharing: int) -> Tensor:
        """Fake-quantized blocks. `sharing` is the number of elements of one example that share a scale."""
        fmt = of_tensor(self.fmt, blocks.detach())
        return StraightThrough.apply(blocks, qparams(*self.limits(blocks), fmt), fmt)

    def extra_repr(self) -> str:
        return str(self.fmt)


class OwnRange(Range):
    """Each block's own minimum and maximum in every pass. For weights with min-max ranges and activations in dynamic formats."""

    def limits(self, blocks: Tensor | None = None) -> Limits:
        assert blocks is not None
        return block_range(blocks.detach(), self.fmt)


class MovingRange(Range):
    """One static range, the moving average of each batch's minimum and maximum in training mode. Fixed in evaluation mode."""

    low: Tensor
    high: Tensor

    def __init__(self, fmt: Format, limits: Limits) -> None:
        super().__init__(fmt)
        for name, limit in zip(("low", "high"), limits, strict=True):
            self.register_buffer(name, limit.detach().clone().reshape(()))

    def limits(self, blocks: Tensor | None = None) -> Limits:
        return self.low.clone(), self.high.clone()

    def forward(self, blocks: Tensor, sharing: int) -> Tensor:
        if self.training:
            low, high = block_range(blocks.detach().view(1, -1), self.fmt)
            self.low.lerp_(low.view(()).to(self.low.dtype), 1 - MOMENTUM)
            self.high.lerp_(high.view(()).to(self.high.dtype), 1 - MOMENTUM)
        return super().forward(blocks, sharing)


class LearnedStep(Range):
    """A learned step (LSQ) for every block. A zero-point, if the format has one, keeps its first value.

    The parameter is log s, so s stays positive. Adam ignores a gradient's size, so its updates are relative to s. The gradient to s
    itself is the paper's. Under the convention `signed`, the scale is s with the sign of its first value.
    """

    zero_point: Tensor
    sign: Tensor

    def __init__(self, fmt: Format, limits: Limits, mean: Tensor | None = None) -> None:
        """Start from clipping ranges [blocks, 1], or from the paper's 2 mean|x| / sqrt(Qp) if `mean` |x| of the blocks is given."""
        super().__init__(fmt)
        params = qparams(*limits, fmt)
        step = params.scale.abs()
        if mean is not None:
            by_mean = 2 * mean / self._outermost(params.zero_point).sqrt()
            step = torch.where(by_mean > torch.finfo(step.dtype).tiny, by_mean.to(step.dtype), step)
        self.log_step = nn.Parameter(step.detach().log())
        self.register_buffer("zero_point", params.zero_point.detach().clone())
        self.register_buffer("sign", params.scale.detach().sign(), persistent=False)

    def _outermost(self, zero_point: Tensor) -> Tensor:
        """The paper's Qp. With a zero-point, its distance to the farther end of the codes. Both are the same for unsigned data."""
        if self.fmt.symmetric:
            return torch.full_like(zero_point, self.fmt.largest)
        return torch.maximum(self.fmt.largest - zero_point, zero_point - self.fmt.smallest)

    def limits(self, blocks: Tensor | None = None) -> Limits:
        step, fmt = self.log_step.detach().exp(), self.fmt
        if fmt.symmetric:
            bound = step * fmt.levels
            if fmt.convention == "signed":  # only the end that has the code -2^(b-1)
                return -bound * (self.sign > 0), bound * (self.sign < 0)
            return -bound, bound
        return (fmt.smallest - self.zero_point) * step, (fmt.largest - self.zero_point) * step

    def forward(self, blocks: Tensor, sharing: int) -> Tensor:
        params = qparams(*self.limits(), self.fmt)
        factor = 1 / (sharing * self._outermost(params.zero_point)).sqrt()
        return LearnedStepSize.apply(blocks, self.log_step.exp(), params, self.fmt, factor)


class TrainableActivation(ActivationQuantizer):
    """An activation quantizer whose range trains. Readers of one tensor share its result and its gradient."""

    def __init__(self, range_: Range, readers: int = 1, axis: int = -1) -> None:
        super().__init__(range_.fmt, None if range_.fmt.dynamic else range_.limits(), readers, axis)
        self.static = None  # `range` takes its place
        self.range = range_

    def quantized(self, x: Tensor) -> Tensor:
        ordered = x if self.fmt.granularity == "tensor" else x.movedim(self.axis, -1)
        result = self.range(to_blocks(ordered, self.fmt), x.numel() // max(len(x), 1))
        result = from_blocks(result, self.fmt, ordered.shape)
        return result if ordered is x else result.movedim(-1, self.axis)

    def settled(self) -> ActivationQuantizer:
        """The quantizer for evaluation, with the current range."""
        return ActivationQuantizer(self.fmt, None if self.fmt.dynamic else self.range.limits(), self.readers, self.axis)


class TrainableLayer(StandIn):
    """A layer that computes with its quantized weight and input, and trains the float weight behind it.

    A BatchNorm behind the layer will be folded, so W gamma / sigma is quantized. It is then divided by gamma / sigma again. The
    BatchNorm itself stays in place and may still learn (Jacob et al., 2018, section 3.2). sigma is the running one, as in
    Krishnamoorthi, 2018, section 3.2.2.
    """

    def __init__(
        self,
        layer: nn.Module,
        weights: Range | None,
        activation: TrainableActivation | None,
        norm_scale: Callable[[], Tensor] | None = None,
    ) -> None:
        """`norm_scale` returns gamma / sigma [out] with its gradient. It is None where no BatchNorm folds into the layer."""
        super().__init__()
        self.layer = layer
        self.weights = weights
        self.activation = activation
        self.norm_scale = norm_scale

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The float weight [out, in] that is quantized, and the scale [out, 1] that it contains."""
        weight, kind = self.layer.weight, kind_of(self.layer)
        assert isinstance(weight, Tensor)
        matrix = weight.t() if kind is not None and kind.transposed else weight.flatten(1)
        if self.norm_scale is None:
            return matrix, None
        scale = self.norm_scale().unsqueeze(1).to(matrix.dtype)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # gamma is 0: the BatchNorm itself silences the channel
        return matrix * scale, scale

    def weight_limits(self) -> Limits | None:
        """Clipping ranges over the blocks of the folded weight, in the form that `QuantLayer` takes."""
        if self.weights is None:
            return None
        return self.weights.limits(to_blocks(self.folded()[0].detach(), self.weights.fmt))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.activation is None else self.activation(x)
        if self.weights is None:
            return self.layer(x)
        matrix, scale = self.folded()
        blocks = to_blocks(matrix, self.weights.fmt)
        quantized = from_blocks(self.weights(blocks, blocks.shape[-1]), self.weights.fmt, matrix.shape)
        quantized = quantized if scale is None else quantized / scale
        old, kind = self.layer.weight, kind_of(self.layer)
        assert isinstance(old, Tensor)
        stored = quantized.t() if kind is not None and kind.transposed else quantized.view(old.shape)
        return functional_call(self.layer, {"weight": stored}, (x,))
