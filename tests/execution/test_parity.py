"""Every kernel against the simulated layer that it replaces: formats x granularities x kernels x dtypes."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sqbench.execution import cuda, native, onednn
from sqbench.execution.base import IntegerLayer
from sqbench.execution.codes import CodedLayer, CodeQuantizer
from sqbench.execution.cuda import CudaFloat8, CudaInt4Weight, CudaInt8
from sqbench.execution.flow import FUNCTIONS
from sqbench.execution.lowering import KERNELS, choose
from sqbench.execution.native_layers import NativeInt4Weight, NativeInt8, NativeInt8Weight
from sqbench.execution.onednn import OneDnnConv, OneDnnLinear
from sqbench.execution.simulated import SimulatedLayer
from sqbench.execution.torch_packed import TorchInt4Weight, TorchInt8Weight
from sqbench.formats.codec import encode, quantize, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import block_range, qparams
from sqbench.formats.scale import Scale
from sqbench.quant.access import is_linear, weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

WIDTH, OUT = 128, 48
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = {
    **{f"int{bits} channel": Format(bits, granularity="channel") for bits in (2, 4, 6, 8)},
    "int8 tensor": Format(8),
    "int8 half range": Format(8, granularity="channel", convention="half_range"),
    "int8 signed channel": Format(8, granularity="channel", convention="signed"),
    "int6 signed tensor": Format(6, convention="signed"),
    "int4 signed group": Format(4, granularity="group", group_size=32, convention="signed"),
    "int8 asym channel": Format(8, symmetric=False, granularity="channel"),
    "int8 group": Format(8, granularity="group", group_size=32),
    "int4 asym group": Format(4, symmetric=False, granularity="group", group_size=64),
    "int3 asym group": Format(3, symmetric=False, granularity="group", group_size=32),
    "int4 group bfloat16": Format(4, granularity="group", group_size=32, scale=Scale("bfloat16")),
}
INPUTS = {
    "float": None,
    **{f"int{bits} static": Format(bits, symmetric=False) for bits in (4, 6, 8)},
    "int8 static sym": Format(8),
    "int8 tensor": Format(8, dynamic=True),
    "int8 asym tensor": Format(8, symmetric=False, dynamic=True),
    "int8 token": Format(8, granularity="token", dynamic=True),
    "int8 asym token": Format(8, symmetric=False, granularity="token", dynamic=True),
    "int8 group": Format(8, granularity="group", group_size=32, dynamic=True),
}
LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, OUT),
    "without bias": lambda: nn.Linear(WIDTH, OUT, bias=False),
    "transposed": lambda: Conv1D(OUT, WIDTH),
    "conv": lambda: nn.Conv2d(8, OUT, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, OUT, 3, stride=2, bias=False),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
}


def inputs_of(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """Shifted, with one large channel and one token of zeros."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 7, WIDTH) if is_linear(layer) else (2, layer.in_channels, 9, 9)  # type: ignore[union-attr]
    x = torch.randn(*shape, generator=generator) + 0.3
    if is_linear(layer):
        x[..., 3] *= 20
        x[1, 2] = 0
    return x.to(dtype)


def simulated(layer: nn.Module, weights: Format, inputs: Format | None, dtype: torch.dtype = torch.float32) -> QuantLayer:
    """A quantized layer; of 8-bit weights every second input has none, so that no pair of products overflows 16 bits anywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if weights.bits == 8:
            inputs_first = layer.weight if isinstance(layer, Conv1D) else layer.weight.transpose(0, 1)  # type: ignore[union-attr]
            inputs_first[1::2] = 0
    layer = layer.to(dtype).requires_grad_(False)
    x = inputs_of(layer, dtype)
    quantizer = None
    if inputs is not None:
        limits = None if inputs.dynamic else tuple(end.view(()) * 0.8 for end in block_range(to_blocks(x, inputs), inputs))
        quantizer = ActivationQuantizer(inputs, limits, axis=-1 if is_linear(layer) else 1)  # type: ignore[arg-type]
    return QuantLayer(layer, encode(weight_of(layer), weights), quantizer)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def runs(kernel: type[IntegerLayer], layer: QuantLayer) -> bool:
    return kernel.takes(layer) and kernel.refusal(layer) is None


def cases() -> Iterator[tuple[str, str, str]]:
    for layer, weights, inputs in product(LAYERS, WEIGHTS, INPUTS):
        if LAYERS[layer]().weight.dim() == 2 or ("group" not in weights and "group" not in inputs):
            yield layer, weights, inputs


@pytest.fixture
def exact_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let oneDNN's 8-bit products run where they could saturate: `simulated` makes weights that do not."""
    monkeypatch.setattr(onednn, "sums_exactly", lambda: True)


@pytest.mark.usefixtures("exact_onednn")
@pytest.mark.parametrize(("kind", "weights", "inputs"), list(cases()), ids=[" · ".join(case) for case in cases()])
def test_every_kernel_computes_what_is_simulated(kind: str, weights: str, inputs: str) -> None:
    layer = simulated(LAYERS[kind](), WEIGHTS[weights], INPUTS[inputs])
    x = inputs_of(layer.layer)
    wanted = layer(x)
    assert relative(SimulatedLayer(layer)(x), wanted) < 1e-5
    for kernel in KERNELS:
        if runs(kernel, layer):
            assert relative(kernel([layer])(x), wanted) < 1e-4, kernel.kernel
    assert (choose(layer, KERNELS)[0] is not None) or choose(layer, KERNELS)[1]


EXECUTED = [
    (OneDnnLinear, "linear", "int8 channel", "int8 static"),
    (OneDnnLinear, "linear", "int8 tensor", "int8 asym token"),
    (OneDnnLinear, "transposed", "int6 channel", "int6 static"),
    (OneDnnConv, "conv", "int6 channel", "int6 static"),
    (OneDnnConv, "depthwise", "int4 channel", "int8 tensor"),
    (NativeInt8, "linear", "int8 channel", "int8 token"),
    (NativeInt8, "without bias", "int8 channel", "int8 asym token"),
    (NativeInt8, "linear", "int4 channel", "int4 static"),
    (NativeInt4Weight, "linear", "int4 asym group", "float"),
    (NativeInt4Weight, "linear", "int3 asym group", "int8 token"),
    (NativeInt8Weight, "transposed", "int8 asym channel", "float"),
    (NativeInt8Weight, "linear", "int8 group", "float"),
    (OneDnnLinear, "linear", "int8 signed channel", "int8 asym token"),
    (OneDnnLinear, "linear", "int6 signed tensor", "int8 static"),
    (OneDnnConv, "conv", "int6 signed tensor", "int8 static"),
    (NativeInt8, "linear", "int8 signed channel", "int8 static"),
    (NativeInt4Weight, "linear", "int4 signed group", "float"),
    (NativeInt8Weight, "linear", "int8 signed channel", "float"),
]


@pytest.mark.usefixtures("exact_onednn")
@pytest.mark.parametrize(("kernel", "kind", "weights", "inputs"), EXECUTED)
def test_kernels_take_the_formats_they_are_for(kernel: type[IntegerLayer], kind: str, weights: str, inputs: str) -> None:
    if "native" in kernel.kernel and native.unavailable():
        pytest.skip(str(native.unavailable()))
    assert runs(kernel, simulated(LAYERS[kind](), WEIGHTS[weights], INPUTS[inputs]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("kernel", "weights"),
    [
        *((TorchInt8Weight, weights) for weights in ("int8 channel", "int6 channel", "int8 signed channel")),
        *((TorchInt4Weight, f"int{kind}") for kind in ("4 asym group", "3 asym group", "4 group bfloat16", "4 signed group")),
    ],
)
def test_half_precision_weight_only(kernel: type[IntegerLayer], weights: str, dtype: torch.dtype) -> None:
    layer = simulated(LAYERS["linear"](), WEIGHTS[weights], None, dtype)
    assert choose(layer, KERNELS)[0] is kernel
    x = inputs_of(layer.layer, dtype)
    made = kernel([layer])
    assert made(x).dtype == dtype
    assert relative(made(x), layer(x)) < 4 * torch.finfo(dtype).eps


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("weights", ["int8 channel", "int8 half range", "int8 signed channel", "int4 channel"])
@pytest.mark.parametrize("inputs", ["int8 static", "int8 token", "int8 asym token", "int8 asym tensor"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_cuda_int8(weights: str, inputs: str, tokens: int) -> None:
    """Without a GPU, Triton's interpreter runs the kernels on the CPU."""
    layer = simulated(LAYERS["linear"](), WEIGHTS[weights], INPUTS[inputs]).to(DEVICE)
    x = inputs_of(layer.layer).repeat(1, 4, 1)[:1, :tokens].to(DEVICE)
    assert relative(CudaInt8([layer])(x), layer(x)) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: SQBENCH_TEST_GPU=1 lets the tests see one")
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 16, 17, 300])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_cuda_int4(group_size: int, rows: int) -> None:
    """Few rows go through torch's kernel, more through a weight that is unpacked from its layout."""
    fmt = Format(4, symmetric=False, granularity="group", group_size=group_size)
    linear = nn.Linear(256, 72).bfloat16()
    layer = QuantLayer(linear, encode(weight_of(linear), fmt), None).to(DEVICE)
    assert CudaInt4Weight.refusal(layer) is None
    x = torch.randn(rows, 256, dtype=torch.bfloat16, device=DEVICE)
    assert relative(CudaInt4Weight([layer])(x), layer(x)) < 2e-2


def test_an_old_gpu_is_refused_by_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    reason = cuda.refuse_gpu(cuda.INT4_CAPABILITY, torch.device("cuda"))
    assert reason == "needs compute capability 8.0, Tesla V100 has 7.0"


@pytest.mark.usefixtures("exact_onednn")
@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if kernel.merges and issubclass(kernel, CodedLayer) and kernel is not CudaFloat8]
)
def test_layers_over_one_input_become_one_product(kernel: type[CodedLayer]) -> None:
    if kernel is CudaInt8 and find_spec("triton") is None:
        pytest.skip("no Triton")
    place = DEVICE if kernel is CudaInt8 else "cpu"
    makers = (LAYERS["linear"], LAYERS["without bias"])
    layers = [simulated(make(), WEIGHTS["int6 channel"], INPUTS["int8 token"]).to(place) for make in makers]
    if kernel.device == "cpu" and (reason := kernel.refusal(layers[0])) is not None:
        pytest.skip(reason)
    x = inputs_of(layers[0].layer).to(place)
    whole = kernel(layers)
    assert relative(whole(x), torch.cat([layer(x) for layer in layers], -1)) < 1e-4
    assert whole.stored_bytes() == sum(layer.stored_bytes() for layer in layers)


@pytest.mark.usefixtures("exact_onednn")
@pytest.mark.parametrize("kernel", [OneDnnLinear, NativeInt8])
@pytest.mark.parametrize("post", ["none", "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("target", ["int8 static", "int8 static sym", "int4 static"])
def test_functions_and_the_next_rounding_inside_the_kernel(kernel: type[CodedLayer], post: str, target: str) -> None:
    first = simulated(LAYERS["linear"](), WEIGHTS["int6 channel"], INPUTS["int8 static"])
    function = FUNCTIONS.get(post, lambda x: x)
    if (reason := kernel.refusal(first)) is not None:
        pytest.skip(reason)
    made, x = kernel([first]), inputs_of(first.layer)
    made.fuse(post, None)
    wanted = function(first(x))
    assert relative(made(x), wanted) < 1e-4
    fmt = INPUTS[target]
    assert fmt is not None
    limits = tuple(end.view(()) * 0.9 for end in block_range(to_blocks(wanted, fmt), fmt))
    reader = CodeQuantizer(ActivationQuantizer(fmt, limits))  # type: ignore[arg-type]
    made.fuse(post, reader)
    found, codes = made(x), reader(wanted).values
    assert found.dtype == torch.uint8
    apart = (found.int() - codes.int()).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.01  # values on the edge between two codes


def test_codes_survive_half_precision() -> None:
    fmt = Format(8, symmetric=False, granularity="channel")
    layer = nn.Linear(WIDTH, OUT).to(torch.bfloat16).requires_grad_(False)
    half = QuantLayer(layer, encode(weight_of(layer), fmt), None)
    blocks = to_blocks(layer.weight.float(), fmt)
    assert torch.equal(half.encoded.codes, quantize(blocks, qparams(*block_range(blocks, fmt), fmt), fmt))
