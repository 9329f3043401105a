"""Bias correction: the mean of a layer's outputs over the calibration inputs is that of the float layer."""

import pytest
import torch
from torch import Tensor, nn

from sqbench.corrections.bias import BiasCorrection
from sqbench.formats.codec import decode, encode
from sqbench.formats.format import Format
from sqbench.quant.access import channels_last, weight_of, with_weight
from sqbench.statistics.inputs import InputStatistics

W2 = Format(2, granularity="channel")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 5, 6)),
        (nn.Linear(6, 4, bias=False), (3, 5, 6)),
        (nn.Conv2d(4, 6, 1), (3, 4, 5, 5)),
        (nn.Conv2d(4, 6, 1, groups=2), (3, 4, 5, 5)),
    ],
)
def test_the_mean_output_is_that_of_the_float_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer.requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    stats = InputStatistics.empty(shape[1] if isinstance(layer, nn.Conv2d) else shape[-1])
    stats.update(channels_last(layer, x))
    encoded = encode(weight_of(layer), W2)
    before = {name: value.clone() for name, value in layer.named_parameters()}
    repaired, about = BiasCorrection().correct(layer, encoded, stats)
    assert all(torch.equal(before[name], value) for name, value in layer.named_parameters())

    def mean(module: nn.Module) -> Tensor:
        outputs = module(x)
        return outputs.mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else outputs.mean((0, 1))

    rounded = with_weight(layer, decode(encoded))
    assert (mean(rounded) - mean(layer)).abs().max() > 0.05
    torch.testing.assert_close(mean(with_weight(repaired, decode(encoded))), mean(layer), rtol=1e-4, atol=1e-5)
    assert about["bias_shift"] > 0.05


def test_every_tap_of_a_kernel_sees_the_mean_input() -> None:
    layer = nn.Conv2d(2, 3, 3, groups=1).requires_grad_(False)
    stats = InputStatistics.empty(2)
    stats.update(torch.tensor([2.0, -1.0]).expand(4, 7, 7, 2))
    encoded = encode(weight_of(layer), W2)
    repaired, _ = BiasCorrection().correct(layer, encoded, stats)
    x = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 7, 7)
    torch.testing.assert_close(with_weight(repaired, decode(encoded))(x), layer(x), rtol=1e-4, atol=1e-5)
