"""Single layers in runtimes: what they compute is the format, to the accumulation error of float32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.params import qparams
from sqbench.formats.scale import Scale
from sqbench.models.functions import Function
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.openvino import group_of, inputs_of

CHANNEL, GROUP = Format(8, granularity="channel"), Format(4, symmetric=False, granularity="group", group_size=64)
STATIC, TOKEN = Format(8, symmetric=False), Format(8, granularity="token", dynamic=True)
GROUPS = Format(8, granularity="group", group_size=32, dynamic=True)
GGUF = Scale("float16", times="unrounded_reciprocal")
FORMATS: dict[str, tuple[Format, Format | None]] = {
    "w8a8": (CHANNEL, STATIC),
    "w8a8 symmetric": (CHANNEL, Format(8)),
    "w8a8 per tensor, half range": (Format(8), Format(8, convention="half_range")),
    "w5a8": (replace(CHANNEL, bits=5), STATIC),
    "w8a8 per token": (CHANNEL, TOKEN),
    "w8a8 in groups": (CHANNEL, GROUPS),
    "w4a8 in groups": (GROUP, GROUPS),
    "w8a16": (CHANNEL, None),
    "w8a16 signed": (replace(CHANNEL, convention="signed"), None),
    "w4a16": (GROUP, None),
    "w4a16 symmetric": (replace(GROUP, symmetric=True, group_size=32), None),
    "w4a16 per channel": (Format(4, symmetric=False, granularity="channel"), None),
    "w3a16": (replace(GROUP, bits=3), None),
    "w6a16": (replace(GROUP, bits=6), None),
    "q4_0": (replace(GROUP, symmetric=True, group_size=32, convention="signed", ties="up", scale=GGUF), None),
    "q8_0": (replace(GROUP, bits=8, symmetric=True, group_size=32, ties="away", scale=GGUF), None),
}


def quantized(layer: nn.Module, weights: Format, inputs: Format | None, x: Tensor) -> QuantLayer:
    limits = None if inputs is None or inputs.dynamic else tuple(0.8 * end for end in torch.aminmax(x))  # so that some are clipped
    activation = None if inputs is None else ActivationQuantizer(inputs, limits and qparams(*limits, inputs))
    return QuantLayer(layer.requires_grad_(False), encode(weight_of(layer), weights), activation)


@torch.no_grad()
def difference(backend: str, layer: QuantLayer, x: Tensor, others: tuple[Tensor, ...]) -> float:
    """Largest difference of a layer's outputs in a runtime, for inputs of several shapes, relative to the largest output."""
    pytest.importorskip(RUNTIMES[backend].package)
    wanted = [layer(inputs) for inputs in (x, *others)]
    runtime = RUNTIMES[backend]
    free = {0: "batch"}
    function = Function(nn.Sequential(layer), {"inputs": x}, ("outputs",), {"inputs": free, "outputs": free})
    session = runtime.start(runtime.write(function, {"0": layer}))
    pairs = [(session(own)[0].clone(), want) for own, want in zip((x, *others), wanted, strict=True)]
    found = max(float((own - want).abs().max() / want.abs().max()) for own, want in pairs)
    assert list(session.executed()) == ["0"]
    return found


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in channels of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.linspace(0.1, 3, shape[-1])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("backend", RUNTIMES)
@pytest.mark.usefixtures("exact")
def test_a_linear_layer_computes_its_format(name: str, backend: str) -> None:
    torch.manual_seed(0)
    weights, inputs = FORMATS[name]
    if RUNTIMES[backend].refusal(weights, inputs) is not None:
        assert (backend, inputs) == ("onnxruntime", GROUPS)
        return
    x = normal(1, 24, 192)
    x[0, 3] = 0.0  # a token without a range
    layer = quantized(nn.Linear(192, 40), weights, inputs, x)
    if name == "w8a16 signed":
        assert float(layer.scale.min()) < 0
    assert difference(backend, layer, x, (normal(3, 24, 192, seed=1),)) < 1e-5


@pytest.mark.parametrize("backend", RUNTIMES)
@pytest.mark.parametrize(
    "formats", [(CHANNEL, None), (CHANNEL, STATIC), (CHANNEL, Format(8)), (replace(GROUP, group_size=12), None)]
)
@pytest.mark.usefixtures("exact")
def test_a_convolution_computes_its_format(backend: str, formats: tuple[Format, Format | None]) -> None:
    torch.manual_seed(0)
    x = normal(2, 8, 9, 9)
    layer = quantized(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2), *formats, x)
    assert difference(backend, layer, x, ()) < 1e-5


def test_a_size_that_openvino_would_pass_over_is_refused() -> None:
    layer = quantized(nn.Linear(96, 8), CHANNEL, replace(GROUPS, group_size=64), normal(1, 2, 96))
    with pytest.raises(UserError, match="fc has 96 inputs in groups of 64, and OpenVINO has one size for all layers"):
        group_of(inputs_of({"fc": layer}))
    assert "64 does not divide 32" in str(
        RUNTIMES["openvino"].refusal(replace(GROUP, group_size=32), replace(GROUPS, group_size=64))
    )
