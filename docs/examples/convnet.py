"""A small network for digits, as `model=python` takes it."""

from torch import nn


def convnet(width: int = 8):
    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    network = nn.Sequential(*block(1, width), *block(width, 16), nn.Flatten(), nn.Linear(16 * 7 * 7, 10))
    return network, {"input_size": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}
