"""Kernels accept what they declare, and nothing else."""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor, nn

from sqbench.execution import block_scaled, cuda, native, onednn
from sqbench.execution.accepts import CODED_INPUTS, CODED_WEIGHTS, ROWS, STATIC
from sqbench.execution.base import IntegerLayer
from sqbench.execution.block_scaled import BlockScaled
from sqbench.execution.codes import CodeQuantizer
from sqbench.execution.cuda import CudaInt8
from sqbench.execution.lowering import KERNELS, choose
from sqbench.execution.onednn import OneDnnConv
from sqbench.execution.simulated import OnePassQuantizer
from sqbench.formats.accepts import Accepts, Multiples
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.params import qparams
from sqbench.formats.scale import FLOAT32, Scale
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer


@dataclass(frozen=True)
class Wider(Format):
    """A format with a field that nobody knows yet."""

    rotation: str = "none"


UNHEARD_OF = {
    "element": {"element": "e5m2"},
    "convention": {"convention": "offset"},
    "zero_point": {"zero_point": "float"},
    "dtype of scales": {"scale": Scale("e8m0")},
    "rule of scales": {"scale": Scale(rule="floor")},
    "second scale": {"scale": Scale(second="float32")},
    "granularity": {"granularity": "block"},
    "field": {"rotation": "hadamard"},
}


def wider(fmt: Format, **changes: object) -> Wider:
    return replace(Wider(**{field.name: getattr(fmt, field.name) for field in fields(fmt)}), **changes)  # type: ignore[arg-type]


def natural(kernel: type[IntegerLayer]) -> QuantLayer:
    """A layer that the kernel executes, on a machine that has it."""
    if issubclass(kernel, BlockScaled):
        layer = nn.Linear(128, 32).requires_grad_(False)
        return QuantLayer(
            layer, encode(weight_of(layer), kernel.natural), ActivationQuantizer(replace(kernel.natural, dynamic=True))
        )
    bits, (element,) = kernel.weights.values.get("bits", (8,)), kernel.weights.values.get("element", ("int",))
    assert isinstance(bits, range | tuple)
    grouped = "group" in kernel.weights.values["granularity"]  # type: ignore[operator]
    fmt = Format(bits[-1], granularity="group" if grouped else "channel", group_size=32 if grouped else None, element=element)
    layer = nn.Conv2d(32, 32, 1) if kernel.convolves else nn.Linear(128, 32)
    layer = layer.to(kernel.dtypes[0]).requires_grad_(False)
    limits = (torch.tensor(-2.0), torch.tensor(3.0))
    read = Format(8, element=element, symmetric=element != "int")
    quantizer = ActivationQuantizer(read, limits) if kernel.inputs is not None else None
    return QuantLayer(layer, encode(weight_of(layer), fmt), quantizer)


def declared_as(layer: QuantLayer, weights: Format) -> QuantLayer:
    """The layer with the same codes, in a format that nobody could have encoded."""
    encoded = replace(layer.encoded, format=weights)
    return QuantLayer(layer.simulated(), encoded, layer.activation)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything, so that formats alone decide."""
    monkeypatch.setattr(onednn, "sums_exactly", lambda: True)
    monkeypatch.setattr(native, "unavailable", lambda: None)
    for module in (cuda, block_scaled):
        monkeypatch.setattr(module, "refuse_gpu", lambda needed, device: None)
    monkeypatch.setattr(block_scaled, "_disagrees", lambda kernel, device: None)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("changes", UNHEARD_OF.values(), ids=UNHEARD_OF)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel)
def test_weights_of_an_unheard_of_format_are_refused(kernel: type[IntegerLayer], changes: dict[str, object]) -> None:
    layer = natural(kernel)
    assert layer.format is not None
    assert kernel.refusal(declared_as(layer, wider(layer.format))) is None
    reason = kernel.refusal(declared_as(layer, wider(layer.format, **changes)))
    assert reason is not None
    assert next(iter(changes)) in reason
    assert reason.endswith(f", not {next(iter(changes.values()))}")


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("changes", [*UNHEARD_OF.values(), {"convention": "signed"}, {"granularity": "channel"}])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.inputs is not None], ids=lambda kernel: kernel.kernel)
def test_inputs_of_an_unheard_of_format_are_refused(kernel: type[IntegerLayer], changes: dict[str, object]) -> None:
    layer = natural(kernel)
    assert isinstance(layer.activation, ActivationQuantizer)
    layer.activation.fmt = wider(layer.activation.fmt)
    assert kernel.refusal(layer) is None
    layer.activation.fmt = wider(layer.activation.fmt, **changes)
    assert f"take inputs with {next(iter(changes))} " in str(kernel.refusal(layer))


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("changes", UNHEARD_OF.values(), ids=UNHEARD_OF)
def test_a_layer_of_an_unheard_of_format_is_simulated_and_named(changes: dict[str, object]) -> None:
    layer = natural(KERNELS[0])
    kernel, reason = choose(declared_as(layer, wider(Format(8, granularity="channel"), **changes)), KERNELS)
    assert kernel is None
    assert next(iter(changes)) in reason


class Inverted(ActivationQuantizer):
    """A quantizer that rounds in its own way."""

    def quantized(self, x: Tensor) -> Tensor:
        return -super().quantized(-x)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel)
def test_quantizers_of_another_class_are_refused(kernel: type[IntegerLayer]) -> None:
    layer = natural(kernel)
    layer.activation = Inverted(Format(8), (torch.tensor(-1.0), torch.tensor(1.0)))
    assert "Inverted" in str(kernel.refusal(layer))


@pytest.mark.usefixtures("able")
def test_models_of_an_undeclared_dtype_are_refused() -> None:
    for kernel in KERNELS:
        layer = natural(kernel)
        layer.layer = layer.layer.double()
        assert "not float64" in str(kernel.refusal(layer))


@pytest.mark.usefixtures("able")
def test_sentences_say_what_works() -> None:
    layer = natural(CudaInt8)
    assert layer.format is not None
    grouped = declared_as(layer, replace(layer.format, granularity="group", group_size=32))
    assert CudaInt8.refusal(grouped) == "8-bit products take weights with granularity tensor or channel, not group"
    asymmetric = declared_as(layer, replace(layer.format, symmetric=False))
    assert CudaInt8.refusal(asymmetric) == "8-bit products take weights with symmetric true, not false"
    tokens = natural(OneDnnConv)
    tokens.activation = ActivationQuantizer(Format(8, granularity="token", dynamic=True))
    assert OneDnnConv.refusal(tokens) == "8-bit convolutions take inputs with granularity tensor, not token"
    few = Accepts("x takes y", {"bits": range(2, 5), "granularity": ("group",), "group_size": Multiples(8)})
    assert few.refusal(Format(5)) == "x takes y with bits 2 to 4, not 5"
    assert few.refusal(Format(4, granularity="group", group_size=12)) == "x takes y with group_size of a multiple of 8, not 12"
    assert few.refusal(Format(4, granularity="group", group_size=16)) is None
    bfloat = Format(4, granularity="group", group_size=16, scale=Scale("bfloat16"))
    assert few.refusal(bfloat) == "x takes y with scale float32, not bfloat16"


@pytest.mark.parametrize("accepts", [CODED_WEIGHTS, CODED_INPUTS, ROWS, STATIC], ids=lambda accepts: accepts.who)
def test_declarations_name_fields_of_a_format(accepts: Accepts) -> None:
    assert set(accepts.values) <= {field.name for field in fields(Format)}


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_pass_rounding_leaves_an_unheard_of_format_to_the_codec(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed inputs are refused by `check`, but the codec knows them: a kernel that took them would be wrong."""
    monkeypatch.setattr(native, "takes", lambda x: True)
    fmt = Format(4, granularity="token" if dynamic else "tensor", dynamic=dynamic, convention="signed")
    x = torch.linspace(-1, 2, 64).view(4, 16)
    limits = None if dynamic else (torch.tensor(-1.0), torch.tensor(2.0))
    quantizer = ActivationQuantizer(fmt, limits)
    assert torch.equal(OnePassQuantizer(quantizer)(x), quantizer(x))
    if limits is not None:
        assert qparams(*limits, fmt).scale < 0
    codes = CodeQuantizer(quantizer, unsigned=False)(x)
    values = (codes.values.float() - codes.params.zero_point) * codes.params.scale
    assert torch.equal(values, quantizer(x))


def test_float32_scales_are_the_default() -> None:
    assert Format().scale is FLOAT32
