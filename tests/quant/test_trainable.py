"""Gradients of fake quantization against formulas and finite differences; values against the quantizer that evaluation runs."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sqbench.formats.codec import encode, fake_quantize, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import QParams, block_range, qparams
from sqbench.formats.scale import Scale
from sqbench.models.batchnorm import batchnorm_scale, fold_batchnorm
from sqbench.quant.access import weight_of
from sqbench.quant.layers import QuantLayer
from sqbench.quant.trainable import (
    LearnedStep,
    LearnedStepSize,
    MovingRange,
    OwnRange,
    Range,
    TrainableActivation,
    TrainableLayer,
)

W3 = Format(bits=3, granularity="channel")
A4 = Format(bits=4, symmetric=False)

formats = st.builds(
    Format,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel"]),
    convention=st.sampled_from(["qmax", "half_range"]),
    scale=st.builds(Scale, st.sampled_from(["float32", "float16"])),
) | st.builds(Format, bits=st.integers(2, 8), granularity=st.sampled_from(["tensor", "channel"]), convention=st.just("signed"))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(formats, st.integers(0, 1000))
def test_values_are_those_of_the_shared_quantizer_bit_for_bit(fmt: Format, seed: int) -> None:
    blocks = to_blocks(normal(6, 16, seed=seed), fmt)
    limits = block_range(blocks, fmt)
    narrow = (limits[0] * 0.7, limits[1] * 0.6)
    ranges: list[Range] = [OwnRange(fmt), LearnedStep(fmt, narrow), LearnedStep(fmt, narrow, blocks.abs().mean(-1, keepdim=True))]
    if fmt.granularity == "tensor":
        ranges.append(MovingRange(fmt, narrow).eval())
    for range_ in ranges:
        expected = fake_quantize(blocks, qparams(*range_.limits(blocks), fmt), fmt)
        assert torch.equal(range_(blocks, 16), expected), type(range_).__name__


def test_straight_through_gradient_is_one_where_the_code_is_inside_and_zero_outside() -> None:
    range_ = MovingRange(Format(bits=3), (torch.tensor(-3.0), torch.tensor(3.0))).eval()  # codes -3 .. 3, scale 1
    x = torch.tensor([[-9.0, -3.6, -3.4, -3.0, 0.3, 2.9, 3.0, 3.4, 3.6]], requires_grad=True)
    range_(x, 9).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0]]


def test_the_largest_weight_of_a_min_max_range_still_learns() -> None:
    for seed, fmt in itertools.product(range(20), (W3, Format(bits=4, symmetric=False, granularity="channel"))):
        blocks = normal(4, 8, seed=seed).requires_grad_()
        OwnRange(fmt)(blocks, 8).sum().backward()
        assert blocks.grad is not None
        assert float(blocks.grad.mean()) > (0.99 if fmt.symmetric else 0.8)  # a rounded zero-point may cut one end by half a step


def test_learned_step_gradient_by_hand() -> None:
    """Step 0.5, codes -3 .. 3: v = -6, -1.2, 0.2, 1.48, 10 gives ds = Qn, 0.2, -0.2, -0.48, Qp."""
    fmt = Format(bits=3)
    x = torch.tensor([[-3.0, -0.6, 0.1, 0.74, 5.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]], dtype=torch.float64)
    bound = torch.full((1, 1), 1.5, dtype=torch.float64)
    range_ = LearnedStep(fmt, (-bound, bound))
    range_(x, 5).backward(upstream)
    by_step = float((upstream * torch.tensor([-3, 0.2, -0.2, -0.48, 3])).sum()) / (5 * 3) ** 0.5
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 10, 100, 1000, 0]]
    assert range_.log_step.grad is not None
    assert float(range_.log_step.grad) == pytest.approx(0.5 * by_step, rel=1e-9)  # d/d log s = s d/ds


@given(
    st.sampled_from([Format(bits=3), Format(bits=4, symmetric=False), Format(bits=2, convention="half_range")]), st.integers(0, 999)
)
def test_learned_step_gradient_is_that_of_its_surrogate(fmt: Format, seed: int) -> None:
    """The surrogate s (clamp(x / s) + d), with d the rounding's displacement held fixed, differentiated numerically."""
    x, step, h = normal(1, 24, seed=seed, dtype=torch.float64), 0.11 + 0.002 * (seed % 100), 1e-7
    zero_point = torch.zeros(1, 1, dtype=torch.float64) if fmt.symmetric else torch.full((1, 1), -3.0, dtype=torch.float64)
    low, high = float(fmt.code_min - zero_point), float(fmt.code_max - zero_point)
    clamped = (x / step).clamp(low, high)
    displacement = clamped.round() - clamped

    def surrogate(x: Tensor, step: float) -> Tensor:
        return step * ((x / step).clamp(low, high) + displacement)

    leaf, s = x.clone().requires_grad_(), torch.full((1, 1), step, dtype=torch.float64, requires_grad=True)
    upstream = normal(1, 24, seed=seed + 1, dtype=torch.float64)
    LearnedStepSize.apply(leaf, s, QParams(s.detach(), zero_point), fmt, 1.0).backward(upstream)
    by_step = (surrogate(x, step + h) - surrogate(x, step - h)) / (2 * h)
    by_x = (surrogate(x + h, step) - surrogate(x - h, step)) / (2 * h)
    assert s.grad is not None
    torch.testing.assert_close(s.grad, (by_step * upstream).sum().view(1, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad, by_x * upstream, rtol=1e-5, atol=1e-5)


def test_a_negative_scale_learns_as_its_mirror_image_does() -> None:
    """The larger end is 4, so the scale is -0.5. Turned round, it is 0.5, and everything else is the same."""
    x = normal(1, 24, dtype=torch.float64)
    found = []
    for sign in (1, -1):
        end = torch.full((1, 1), -4.0 * sign, dtype=torch.float64)
        range_ = LearnedStep(Format(4, convention="signed"), (end.clamp(max=0), end.clamp(min=0)))
        leaf = (sign * x).requires_grad_()
        result = range_(leaf, 24)
        (sign * result * x).sum().backward()
        assert qparams(*range_.limits(), range_.fmt).scale.item() == 0.5 * sign
        assert range_.log_step.grad is not None
        found.append((sign * result, sign * leaf.grad, range_.log_step.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][2].abs() > 0


def test_straight_through_passes_gradients_inside_a_negative_scale() -> None:
    leaf = torch.tensor([[-1.0, 0.0, 8.0, 7.9]], requires_grad=True)
    OwnRange(Format(4, convention="signed"))(leaf, 4).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[1, 1, 1, 1]]


def test_steps_start_where_they_are_told_to() -> None:
    weight = normal(5, 32)
    mean = weight.abs().mean(-1, keepdim=True)
    paper = LearnedStep(W3, block_range(weight, W3), mean)
    torch.testing.assert_close(paper.log_step.exp(), 2 * mean / 3**0.5)  # Qp = 3
    torch.testing.assert_close(LearnedStep(W3, block_range(weight, W3)).log_step.exp(), weight.abs().amax(-1, keepdim=True) / 3)
    unsigned = LearnedStep(A4, (torch.zeros(1, 1), torch.ones(1, 1)), torch.full((1, 1), 0.25))
    torch.testing.assert_close(unsigned.log_step.exp(), torch.full((1, 1), 0.5 / 15**0.5))  # the paper's unsigned Qp = 2^b - 1
    assert unsigned.zero_point.item() == A4.code_min
    dead = LearnedStep(W3, block_range(torch.zeros(2, 4), W3), torch.zeros(2, 1))
    assert torch.equal(dead.log_step.exp(), torch.ones(2, 1))


def test_a_step_stays_positive_and_a_zero_point_stays() -> None:
    range_ = LearnedStep(A4, (torch.full((1, 1), -0.2), torch.full((1, 1), 1.0)))
    zero_point = range_.zero_point.clone()
    optimizer = torch.optim.SGD(range_.parameters(), lr=100.0)
    for _ in range(20):
        optimizer.zero_grad()
        range_(normal(1, 64).abs(), 64).sum().backward()  # pulls the step towards 0
        optimizer.step()
        low, high = range_.limits()
        params = qparams(low, high, A4)
        assert params.scale > 0
        assert torch.equal(params.zero_point, zero_point)


def test_moving_ranges_move_in_training_mode_alone() -> None:
    range_ = MovingRange(A4, (torch.tensor(-1.0), torch.tensor(1.0)))
    batch = torch.tensor([[-3.0, 5.0]])
    range_.eval()(batch, 2)
    assert [float(limit) for limit in range_.limits()] == [-1, 1]
    range_.train()(batch, 2)
    assert [float(limit) for limit in range_.limits()] == pytest.approx([-1.02, 1.04])


LAYERS = {
    "Linear": (lambda: nn.Linear(8, 6), (3, 5, 8)),
    "Conv1D": (lambda: Conv1D(6, 8), (3, 5, 8)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (3, 4, 5, 5)),
    "Conv2dSame": (lambda: Conv2dSame(4, 6, 3, stride=2), (3, 4, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("learned", [False, True], ids=["minmax", "learned"])
def test_a_trainable_layer_is_the_quantized_layer_it_becomes(name: str, learned: bool) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), normal(*shape)
    limits = (x.amin().clamp(max=0).view(1, 1), x.amax().view(1, 1) * 0.8)
    weights: Range = LearnedStep(W3, block_range(weight_of(layer), W3)) if learned else OwnRange(W3)
    activation = TrainableActivation(LearnedStep(A4, limits) if learned else MovingRange(A4, limits))
    trainable = TrainableLayer(layer, weights, activation).eval()
    result = trainable(x)
    quantized = QuantLayer(layer, encode(weight_of(layer), W3, trainable.weight_limits()), activation.settled())
    assert torch.equal(result, quantized(x))
    assert not torch.allclose(result, layer(x), atol=1e-3)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.parameters())


def test_a_batchnorm_is_quantized_as_it_will_be_folded() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6))
    norm = net[1]
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias)
    norm.weight.data[2] = 0.0  # a channel that the BatchNorm silences
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    x = normal(4, 3, 8, 8)
    trainable = TrainableLayer(net[0], OwnRange(W3), None, lambda: batchnorm_scale(norm)[0])
    limits = trainable.weight_limits()
    seen = norm.eval()(trainable(x))
    assert torch.isfinite(seen).all()
    seen.square().sum().backward()
    assert norm.weight.grad is not None
    assert torch.isfinite(norm.weight.grad).all()
    fold_batchnorm(net, "0", "1")
    folded = QuantLayer(net[0], encode(weight_of(net[0]), W3, limits), None)
    torch.testing.assert_close(folded(x), seen, rtol=1e-5, atol=1e-5)


def test_with_frozen_statistics_the_gradient_is_that_of_the_folded_layer() -> None:
    """With every code inside, straight-through means: as if nothing were rounded, evaluated at the rounded weight."""
    layer, norm = nn.Linear(4, 3, bias=False).double(), nn.BatchNorm1d(3).double().eval()
    norm.running_var.uniform_(0.5, 2)
    x = normal(5, 4, dtype=torch.float64)
    trainable = TrainableLayer(layer, OwnRange(Format(bits=8, granularity="channel")), None, lambda: batchnorm_scale(norm)[0])
    norm(trainable(x)).sum().backward()
    quantized = (layer.weight * batchnorm_scale(norm)[0].unsqueeze(1)).detach().requires_grad_()
    (x @ quantized.t()).sum().backward()
    assert quantized.grad is not None
    sigma = (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(layer.weight.grad, quantized.grad * (norm.weight / sigma).detach().unsqueeze(1))
    torch.testing.assert_close(norm.weight.grad, (quantized.grad * layer.weight.detach()).sum(1) / sigma)


def test_readers_of_one_tensor_share_one_step_and_one_gradient() -> None:
    calls = []

    class Counting(OwnRange):
        def forward(self, blocks: Tensor, sharing: int) -> Tensor:
            calls.append(sharing)
            return super().forward(blocks, sharing)

    shared = TrainableActivation(Counting(Format(bits=4, granularity="token", dynamic=True)), readers=2)
    layers = [TrainableLayer(nn.Linear(8, 3), None, shared) for _ in range(2)]
    x = normal(2, 5, 8).requires_grad_()
    (layers[0](x) + layers[1](x)).sum().backward()
    assert len(calls) == 1
    weights = [layer.layer.weight for layer in layers]
    assert all(isinstance(weight, Tensor) for weight in weights)
    torch.testing.assert_close(x.grad, sum(weight.sum(0) for weight in weights).expand_as(x))  # type: ignore[union-attr]


def test_elements_that_share_an_activations_step_are_those_of_one_example() -> None:
    limits = (torch.full((1, 1), -1.0), torch.full((1, 1), 1.0))
    grads = []
    for copies in (1, 4):
        activation = TrainableActivation(LearnedStep(A4, limits))
        activation(normal(1, 3, 8).repeat(copies, 1, 1)).square().mean().backward()
        grad = activation.range.log_step.grad  # type: ignore[union-attr]
        assert isinstance(grad, Tensor)
        grads.append(float(grad))
    assert grads[0] == pytest.approx(grads[1], rel=1e-5)  # the mean over a batch of equal images changes nothing
