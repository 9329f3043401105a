"""The size of a model, before a weight is read. A plan predicts seconds and memory from it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.folder import configs


@dataclass(frozen=True)
class Extent:
    """The size of a model. A unit is a token, or an image.

    Attributes:
        weights: number of parameters.
        flops: floating-point operations of a forward pass per unit: two for each product of a weight and an input.
        inputs: numbers that its layers read per unit.
        channels: input channels of all layers together.
        outputs: predictions per unit.
    """

    weights: int
    flops: float
    inputs: int
    channels: int
    outputs: int


def of_language(shapes: Iterable[tuple[int, ...]], config: dict[str, Any]) -> Extent | None:
    """The extent of a language model, from its tensors' shapes and its config.json. None if that lacks width or vocabulary.

    Only matrices count for `flops`, because they take the time. Input embeddings that are not the head's do not count: a token
    reads only one row. All experts count, although a token meets only some of them.
    """
    about = {key: value for part in configs(config) for key, value in part.items()}
    width, vocabulary = about.get("hidden_size", about.get("n_embd")), about.get("vocab_size")
    if not width or not vocabulary:
        return None
    shapes = list(shapes)
    weights = sum(math.prod(shape) for shape in shapes)
    embeddings = sum(1 for shape in shapes if shape[:1] == (vocabulary,))
    used = sum(math.prod(shape) for shape in shapes if len(shape) > 1) - (embeddings > 1) * vocabulary * width
    # A matrix [out, in] reads `in` numbers. q, k and v share one input, gate and up another: 4 of 7 inputs are distinct.
    channels = sum(shape[-1] for shape in shapes if len(shape) == 2 and shape[0] != vocabulary) * 4 // 7
    return Extent(weights, 2.0 * used, channels, channels, int(vocabulary))


def of_images(build: Callable[[], nn.Module], input_size: tuple[int, int, int]) -> Extent | None:
    """The extent of an image model, from a forward pass on the meta device, which computes nothing. None if the pass fails.

    Only products of weights and inputs count. At the sizes of images, products of two activations (attention) are few.
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
