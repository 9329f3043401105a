"""Products of 8-bit floats agree with the simulation. Without a GPU, torch computes them on the CPU."""

import pytest
import torch
from torch import Tensor, nn

from sqbench.execution import cuda
from sqbench.execution.cuda import CudaFloat8
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = (torch.tensor(-3.0), torch.tensor(3.0))


def simulated(outputs: int, weights: str, inputs: str, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> QuantLayer:
    torch.manual_seed(outputs)
    linear = nn.Linear(64, outputs, bias=bias).to(dtype).requires_grad_(False)
    fmt = Format(element="e4m3", granularity=inputs, dynamic=inputs == "token")
    quantizer = ActivationQuantizer(fmt, None if fmt.dynamic else LIMITS)
    return QuantLayer(linear, encode(weight_of(linear), Format(element="e4m3", granularity=weights)), quantizer).to(DEVICE)


def inputs_of(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    return x.to(dtype).to(DEVICE)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).float().norm() / wanted.float().norm())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", ["tensor", "token"])
@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_products_agree_with_the_simulation(weights: str, inputs: str, dtype: torch.dtype) -> None:
    for bias, rows in ((True, 1), (False, 40)):
        layer = simulated(48, weights, inputs, bias=bias, dtype=dtype)
        assert CudaFloat8.weights.refusal(layer.format) is None  # type: ignore[arg-type]
        assert CudaFloat8._refused_input(layer.activation) is None
        x = inputs_of(rows, dtype)
        found = CudaFloat8([layer])(x)
        assert found.dtype == dtype
        assert error(found, layer(x)) < (1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_layers_over_one_input_become_one_product() -> None:
    layers = [simulated(48, "channel", "token"), simulated(32, "channel", "token", bias=False)]
    x = inputs_of(5)
    assert error(CudaFloat8(layers)(x), torch.cat([layer(x) for layer in layers], -1)) < 1e-5


def test_a_width_that_the_product_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "refuse_gpu", lambda needed, device: None)
    assert CudaFloat8.refusal(simulated(48, "channel", "token")) is None
    reason = CudaFloat8.refusal(simulated(40, "channel", "token"))
    assert reason == "cuda fp8 takes multiples of 16 input and output channels, not 64 and 40"
