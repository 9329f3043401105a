"""Small trained classifiers and images that they find neither trivial nor hopeless."""

from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, cross_entropy

from sqbench.calibration import Statistics, collect
from sqbench.data.image_splits import in_memory
from sqbench.data.images import LabelledImages
from sqbench.data.preprocessing import Preprocessing
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.image import ImageModel
from sqbench.parts.task import Task
from sqbench.statistics import EVERYDAY

CLASSES, SIDE = 8, 12
PREPROCESSING = Preprocessing((1, SIDE, SIDE), (0.5,), (0.25,))


def images(count: int, seed: int) -> LabelledImages:
    """Smooth patterns, one per class, under noise."""
    patterns = avg_pool2d(torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(9)), 3, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randn(count, SIDE, SIDE, generator=generator)
    pixels = (128 + 60 * patterns[labels, 0] + 40 * noise).clamp(0, 255).byte()
    return LabelledImages(
        in_memory(pixels.numpy(), labels.numpy().astype(np.int64), f"images of seed {seed}"), range(count), PREPROCESSING
    )


class Convnet(nn.Module):
    """Convolution, BatchNorm and ReLU, twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(adaptive_avg_pool2d(x, 3).flatten(1))


def tiny_vit() -> nn.Module:
    return VisionTransformer(img_size=SIDE, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=32, depth=2, num_heads=2)


@dataclass
class Lab:
    """A trained model and what it is trained, calibrated and tested on."""

    model: ImageModel
    statistics: Statistics
    train: LabelledImages
    test: LabelledImages

    def task(self, scheme: Scheme) -> Task:
        return Task(self.model, self.statistics, scheme)

    def loss(self, model: Model) -> float:
        """Cross entropy on the test images."""
        batch = next(self.test.batches(len(self.test)))
        with torch.no_grad():
            return float(cross_entropy(model.forward(batch.images), batch.labels))


def scheme(weights: int, activations: int | None, **options: object) -> Scheme:
    """Weights per channel, activations static per tensor."""
    inputs = None if activations is None else Format(activations, symmetric=False)
    return Scheme(f"w{weights}a{activations or 16}", Format(weights, granularity="channel"), inputs, **options)  # type: ignore[arg-type]


def trained(module: nn.Module, name: str) -> Lab:
    train, test = images(1024, 1), images(512, 2)
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    module.train()
    for epoch in range(6):
        for batch in train.batches(32, torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))):
            optimizer.zero_grad()
            cross_entropy(module(batch.images), batch.labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    module.eval().requires_grad_(False)
    model = ImageModel(module, name, name, (), preprocessing=PREPROCESSING, classes=CLASSES)
    calibration = next(train.batches(64)).images
    topology = model.topology
    needs = EVERYDAY | {"gram"}
    statistics = collect(module, model.body, topology.sites, calibration, points=topology.points, needs=needs)
    return Lab(model, statistics, train, test)


def snapshot(model: Model) -> dict[str, Tensor]:
    """Everything a model computes with, copied."""
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
