"""BatchNorm folded into the convolution before it: the same function, fewer layers."""

import pytest
import timm
import torch
from torch import nn

from sqbench.models.batchnorm import batchnorm_scale, fold_batchnorm, is_batchnorm
from sqbench.models.folding import share
from sqbench.models.topology import discover


def trained(module: nn.Module) -> nn.Module:
    """Running statistics and affine maps that are not the identity."""
    torch.manual_seed(0)
    for norm in module.modules():
        if is_batchnorm(norm):
            ranges = {"running_var": (0.5, 2), "running_mean": (-1, 1), "weight": (0.5, 2), "bias": (-1, 1)}
            for name, (low, high) in ranges.items():
                getattr(norm, name).data.uniform_(low, high)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
def test_scale_and_shift_are_the_affine_map(bias: bool) -> None:
    norm = trained(nn.BatchNorm2d(4).double())
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    scale, shift = batchnorm_scale(norm)
    torch.testing.assert_close(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), norm(x))
    module = nn.Sequential(nn.Conv2d(4, 4, 3, bias=bias).double(), norm)
    before = module(x)
    fold_batchnorm(module, "0", "1")
    torch.testing.assert_close(module(x), before)
    assert isinstance(module[1], nn.Identity)


def test_batchnorm_without_affine_or_statistics() -> None:
    assert not is_batchnorm(nn.BatchNorm2d(4, track_running_stats=False))
    plain = trained_plain = nn.BatchNorm2d(3, affine=False).eval()
    trained_plain.running_var.uniform_(0.5, 2)
    scale, shift = batchnorm_scale(plain)
    torch.testing.assert_close(scale, torch.rsqrt(plain.running_var + plain.eps))
    torch.testing.assert_close(shift, -plain.running_mean * scale)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_efficientnet"])
def test_every_batchnorm_of_real_families_folds(name: str) -> None:
    module = trained(timm.create_model(name, num_classes=5))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = discover(module, lambda: module(images))
        assert len(found.batchnorms) == sum(is_batchnorm(layer) for layer in module.modules())
        assert not found.groups
        folded = share(module)
        for pair in found.batchnorms:
            fold_batchnorm(folded, *pair)
        before, after = module(images), folded(images)
    assert not any(is_batchnorm(layer) for layer in folded.modules())
    assert (before - after).abs().max() <= 1e-4 * before.abs().max()
    assert any(is_batchnorm(layer) for layer in module.modules())  # the float model keeps its own


class Branch(nn.Module):
    """A convolution whose output something else reads besides the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + self.norm(x)


def test_a_convolution_with_another_reader_is_left_alone() -> None:
    module = trained(Branch())
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert discover(module, lambda: module(images)).batchnorms == ()
