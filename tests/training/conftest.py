"""Fixtures: two trained classifiers, made once."""

import pytest
import torch
from labs import Convnet, Lab, tiny_vit, trained


@pytest.fixture(scope="session")
def cnn() -> Lab:
    """Two convolutions with BatchNorm and a linear layer."""
    torch.manual_seed(0)
    return trained(Convnet(), "cnn")


@pytest.fixture(scope="session")
def vit() -> Lab:
    """timm's ViT with two blocks of width 32."""
    torch.manual_seed(0)
    return trained(tiny_vit(), "vit")
