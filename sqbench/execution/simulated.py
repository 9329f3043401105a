"""Execution of simulated layers. The numbers are those of a `QuantLayer`, with fewer passes over memory."""

from torch import Tensor, nn

from sqbench.execution import native
from sqbench.execution.accepts import ROWS, STATIC
from sqbench.execution.floats import FloatLinear, prefers_onednn
from sqbench.quant.access import is_linear
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, StandIn, Stored


class OnePassQuantizer(nn.Module):
    """Fake-quantizes like the `ActivationQuantizer` that it is made from, bit for bit.

    A native kernel reads the input once. Formats that it does not accept go through the codec.
    """

    def __init__(self, simulated: ActivationQuantizer) -> None:
        super().__init__()
        self.simulated = simulated
        static = simulated.static
        self.one_pass = (ROWS if static is None else STATIC).refusal(simulated.fmt) is None
        self.scale, self.zero_point = (1.0, 0) if static is None else (float(static.scale), int(static.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        return self.simulated.shared(self._quantized, x)

    def _quantized(self, x: Tensor) -> Tensor:
        fmt = self.simulated.fmt
        if self.one_pass and native.takes(x):
            if self.simulated.static is not None:
                return native.fake_quantize_static(x, self.scale, self.zero_point, fmt)
            if self.simulated.axis in (-1, x.dim() - 1):
                return native.fake_quantize_rows(x.view(-1, x.shape[-1]), fmt).view(x.shape)
        return self.simulated.quantized(x)


class SimulatedLayer(StandIn, Stored):
    """Takes the place of a `QuantLayer`. It quantizes in one pass, and multiplies by this machine's faster float kernel."""

    kernel = "simulated"

    def __init__(self, quantized: QuantLayer) -> None:
        super().__init__()
        activation = quantized.activation
        self.activation = OnePassQuantizer(activation) if isinstance(activation, ActivationQuantizer) else activation
        self.layer = quantized.simulated()
        if is_linear(self.layer) and prefers_onednn(self.weight):
            self.layer = FloatLinear(self.layer).drop_weight()
        self._stored_bytes = quantized.stored_bytes()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if self.activation is None else self.activation(x))

    def stored_bytes(self) -> int:
        """Bytes of the weight in its format."""
        return self._stored_bytes

    def extra_repr(self) -> str:
        return self.kernel


def quicken(module: nn.Module) -> None:
    """Replace, in place, activation quantizers that belong to no layer by ones of one pass.

    They quantize operands of products and of sums.
    """
    for name, part in list(module.named_modules()):
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(part, ActivationQuantizer) and not isinstance(parent, OnePassQuantizer):
            module.set_submodule(name, OnePassQuantizer(part))
