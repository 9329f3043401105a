"""Linear layers: reading their weights whatever class they have, and the quantized linear that takes their place."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sqbench.quant.affine import QParams, block_range, fake_quantize, qparams, round_trip, to_blocks
from sqbench.quant.formats import Format

# Class name -> whether the weight is stored [in, out]. Names, not classes: Conv1D is GPT-2's, and lives in transformers.
LINEAR_KINDS = {"Linear": False, "Conv1D": True}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is y = x W^T + b with a weight we can read and replace."""
    return type(module).__name__ in LINEAR_KINDS


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear as [out_features, in_features]; a view of the parameter, never a copy."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t() if LINEAR_KINDS.get(type(module).__name__, False) else weight.detach()


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a linear a new weight [out_features, in_features]; the old tensor is left as it was, for whoever shares it."""
    transposed = LINEAR_KINDS.get(type(module).__name__, False)
    module.weight = nn.Parameter(weight.t().contiguous() if transposed else weight, requires_grad=False)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes an activation [..., channels]: with fixed ranges if they are given, else with those of the tensor.

    Linears that read the same tensor share one: it does the work for the first of `readers` and hands the others the result.
    """

    def __init__(self, fmt: Format, limits: tuple[Tensor, Tensor] | None = None, readers: int = 1) -> None:
        super().__init__()
        assert fmt.dynamic == (limits is None), "static formats need limits, dynamic formats have none"
        self.fmt = fmt
        self.static = None if limits is None else qparams(*limits, fmt)
        self.readers = readers
        self._known: tuple[Tensor, int, Tensor] | None = None  # input, its version, result
        self._waiting = 0

    def forward(self, x: Tensor) -> Tensor:
        version = -1 if x.is_inference() else x._version  # inference tensors keep none, and no layer writes to its input
        if self._known is not None and self._known[0] is x and self._known[1] == version:
            result = self._known[2]
            self._waiting -= 1
        else:
            blocks = to_blocks(x, self.fmt)
            params = self.static if self.static is not None else qparams(*block_range(blocks), self.fmt)
            result = fake_quantize(blocks, params, self.fmt).view(x.shape).to(x.dtype)
            self._known, self._waiting = (x, version, result), self.readers - 1
        if self._waiting <= 0:
            self._known = None  # nobody else reads it: let it go
        return result

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # .to(device) moves the parameters along
        if self.static is not None:
            self.static = QParams(*(fn(part) for part in self.static))
        return super()._apply(fn, recurse)


class QuantLinear(nn.Module):
    """A linear whose weight (and input) went through the quantizer. Simulated: holds the dequantized weight [out, in]."""

    def __init__(
        self, linear: nn.Module, fmt: Format | None, limits: tuple[Tensor, Tensor] | None, activation: nn.Module | None
    ) -> None:
        """`limits` are clipping ranges over the weight's blocks; None takes each block's own minimum and maximum."""
        super().__init__()
        weight = weight_of(linear)
        self.format = fmt
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.weight = nn.Parameter(weight if fmt is None else round_trip(weight, fmt, limits), requires_grad=False)
        assert linear.bias is None or isinstance(linear.bias, Tensor)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x)
        return functional.linear(x, self.weight, self.bias)

    def stored_bytes(self) -> int:
        """Bytes of the weight as stored in its format (codes, scales, zero-points), not as simulated."""
        if self.format is None:
            return self.weight.numel() * self.weight.element_size()
        return self.format.stored_bytes(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, weight {self.format or 'float'}"


def stored_bytes(model: nn.Module) -> int:
    """Weight bytes of a whole model as stored: quantized linears in their format, everything else as it is, tied tensors once."""
    total, seen = 0, set()
    for module in model.modules():
        if isinstance(module, QuantLinear):
            total += module.stored_bytes()
            seen.add(module.weight.data_ptr())
    for tensor in model.parameters():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.numel() * tensor.element_size()
    return total


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio in dB: 10 log10(sum x^2 / sum (x - x^)^2); capped at 200 for an exact copy."""
    signal = reference.double().square().sum()
    noise = (reference.double() - approximation.double()).square().sum()
    if signal == 0:
        return 200.0 if noise == 0 else -200.0
    return float(torch.clamp(10 * torch.log10(signal / noise.clamp(min=1e-300)), max=200.0))
