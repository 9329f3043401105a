"""How large a model is, before a weight is read: what a plan predicts seconds and memory from."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.folder import configs


@dataclass(frozen=True)
class Extent:
    """How large a model is. A unit is a token, or an image.

    Attributes:
        weights: how many parameters.
        flops: of a forward pass, for each unit: two for a product of a weight and an input.
        inputs: numbers that its layers read, for each unit.
        channels: of all layers' inputs together.
        outputs: predictions for each unit.
    """

    weights: int
    flops: float
    inputs: int
    channels: int
    outputs: int


def of_language(shapes: Iterable[tuple[int, ...]], config: dict[str, Any]) -> Extent | None:
    """Of a language model, by the shapes of its tensors and its config.json; None if that does not tell its width and vocabulary.

    Matrices count, which is what takes time; of input embeddings that are not the head's only a row is read for a token. All
    experts count, though a token meets some of them.
    """
    about = {key: value for part in configs(config) for key, value in part.items()}
    width, vocabulary = about.get("hidden_size", about.get("n_embd")), about.get("vocab_size")
    if not width or not vocabulary:
        return None
    shapes = list(shapes)
    weights = sum(math.prod(shape) for shape in shapes)
    embeddings = sum(1 for shape in shapes if shape[:1] == (vocabulary,))
    used = sum(math.prod(shape) for shape in shapes if len(shape) > 1) - (embeddings > 1) * vocabulary * width
    # A matrix [out, in] reads `in` numbers; q, k and v read the same, and so do gate and up: about every second one is new.
    channels = sum(shape[-1] for shape in shapes if len(shape) == 2 and shape[0] != vocabulary) * 4 // 7
    return Extent(weights, 2.0 * used, channels, channels, int(vocabulary))


def of_images(build: Callable[[], nn.Module], input_size: tuple[int, int, int]) -> Extent | None:
    """Of an image model, from a forward pass on the meta device, where nothing is computed; None if it fails there.

    Products of weights and inputs count: those of two activations (attention) are few beside them at the sizes of images.
    """
    flops, inputs, channels = [], [], []

    def count(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        flops.append(2.0 * weight.numel() * (output.numel() // len(weight)))
        inputs.append(args[0].numel())
        channels.append(weight.numel() // len(weight))

    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
            module = build().eval()
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                    layer.register_forward_hook(count)
            outputs = module(torch.zeros(1, *input_size))
    except Exception:  # noqa: BLE001 (an architecture may do anything; its cost is unknown then)
        return None
    return Extent(sum(one.numel() for one in module.parameters()), sum(flops), sum(inputs), sum(channels), outputs.numel())
