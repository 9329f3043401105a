"""Layers are known by what they compute: classes of all kinds against their own forward pass, and networks that hold them."""

import pytest
import torch
from labs import CLASSES, PREPROCESSING, scheme
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from sqbench import api
from sqbench.calibration import collect
from sqbench.models.image import ImageModel
from sqbench.models.plain import make_plain, plain
from sqbench.models.topology import discover
from sqbench.quant.access import kind_of, weight_of


class Adapter(nn.Linear):
    """Adds a product of low rank (LoRA): one weight says half of it."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.down, self.up = nn.Parameter(torch.randn(2, 8) * 0.1), nn.Parameter(torch.randn(6, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-20, 20)


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.randn(self.out_features)


class Dynamic(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * (1 + 0.01 * x.mean()), self.bias)


class Masked(nn.Linear):
    """Multiplies by a part of its weight."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.register_buffer("mask", (torch.arange(48).view(6, 8) % 3 > 0).float())

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.mask, self.bias)


class Broken(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not for such inputs")


class Inherits(nn.Conv2d):
    """Another name for the same."""


PROVEN = {
    "falcon": (lambda: FalconLinear(8, 6), nn.Linear),
    "masked": (Masked, nn.Linear),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear),
    "spectral norm, by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(8, 6)), nn.Linear),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1)), nn.Conv2d),
    "StdConv2d": (lambda: StdConv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(4, 8, 3, groups=2), nn.Conv2d),
    "StdConv2dSame": (lambda: StdConv2dSame(4, 6, 3, stride=2), Conv2dSame),
    "ScaledStdConv2dSame": (lambda: ScaledStdConv2dSame(4, 6, 5, stride=2, dilation=2), Conv2dSame),
}
REFUSED = {"adapter": Adapter, "clamped": Clamped, "noisy": Noisy, "dynamic": Dynamic, "broken": Broken}
REFUSED = {name: (lambda cls=cls: cls() if cls is Adapter else cls(8, 6)) for name, cls in REFUSED.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PROVEN)
def test_a_product_with_one_weight_becomes_a_plain_layer(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, cls = PROVEN[name]
    layer = build().eval().requires_grad_(False).to(dtype)
    assert kind_of(layer) is None
    other = plain(layer)
    assert other is not None
    assert type(other) is cls
    assert (kind_of(other), other.weight.dtype) == (kind_of(cls(4, 4, 3) if cls is not nn.Linear else cls(4, 4)), dtype)
    assert {key for key, _ in other.named_parameters()} <= {"weight", "bias"}
    assert not list(other.buffers())
    x = torch.randn(2, 4, 11, 12, dtype=dtype) if cls is not nn.Linear else torch.randn(2, 5, 8, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 has 8 bits, and a product in two steps rounds twice
    torch.testing.assert_close(other(x), layer(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_product_with_one_weight_stays_in_float_and_is_named(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(REFUSED[name](), nn.Linear(6, 3)).eval().requires_grad_(False)
    state = torch.get_rng_state()
    make_plain(module)
    assert torch.equal(state, torch.get_rng_state())
    assert kind_of(module[0]) is None
    if name == "broken":
        return
    topology = discover(module, lambda: module(torch.randn(4, 8)))
    assert topology.layers == ("1",)
    found = dict(topology.floating)
    assert found["0"] == f"layers of class {type(module[0]).__name__} do not compute a product with one fixed weight"
    assert set(found) == ({"0", "0.down", "0.up"} if name == "adapter" else {"0"})


def test_a_class_is_known_by_its_forward_pass_and_not_by_its_name() -> None:
    class Linear(nn.Module):  # a name like that of torch's
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    assert kind_of(Linear()) is None
    assert kind_of(Inherits(3, 4, 3)) == kind_of(nn.Conv2d(3, 4, 3)) is not None
    assert kind_of(Conv1D(4, 3)) is not None
    assert kind_of(nn.Conv1d(3, 4, 3)) is None
    assert plain(nn.Linear(3, 3)) is None


def test_tied_layers_stay_one_and_a_shared_weight_stays_shared() -> None:
    shared = FalconLinear(6, 6)
    module = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared]), "table": nn.Embedding(6, 6)}).eval().requires_grad_(False)
    module["table"].weight = shared.weight
    make_plain(module)
    assert module["a"] is module["b"][0]
    assert module["a"].weight is module["table"].weight


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = StdConv2dSame(1, 8, 3, stride=2), ScaledStdConv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.stem(x).relu()).relu().mean((2, 3)))


def test_a_weight_standardised_network_is_quantized_by_its_effective_weights() -> None:
    """The float function stays, and what is rounded is the weight that images are multiplied with."""
    torch.manual_seed(0)
    module = Standardised().eval().requires_grad_(False)
    inputs = torch.randn(8, 1, 12, 12)
    expected, stored = module(inputs), module.stem.weight
    make_plain(module)
    torch.testing.assert_close(module(inputs), expected)
    assert not torch.allclose(module.stem.weight, stored, atol=0.1)
    model = ImageModel(module, "nf", "nf", preprocessing=PREPROCESSING, classes=CLASSES)
    statistics = collect(module, module, model.topology.sites, inputs)
    quantized = api.quantize(model, statistics, "minmax", scheme(8, 8))
    assert [layer["layer"] for layer in quantized.report["per_layer"]] == ["stem", "conv", "head"]
    assert quantized.report["coverage"] == 1
    step = weight_of(module.stem).abs().amax(1) / 127
    error = (weight_of(quantized.module.stem.simulated()) - weight_of(module.stem)).abs().amax(1)
    assert bool((error <= step * 0.501).all())
