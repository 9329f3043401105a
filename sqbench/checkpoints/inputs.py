"""The quantizers of inputs that a checkpoint asks for."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqbench.checkpoints.stored import StoredInput
from sqbench.quant.layers import ActivationQuantizer


def quantizers_of(inputs: Mapping[str, StoredInput], site: Mapping[str, str]) -> dict[str, ActivationQuantizer]:
    """The quantizer of each layer's input. Layers that read one tensor and round it alike share one.

    Args:
        inputs: layer -> how its input is rounded.
        site: layer -> the tensor that it reads.
    """

    def alike(layer: str) -> tuple[Any, ...]:
        params = inputs[layer].params
        return site.get(layer, layer), inputs[layer].format, *(() if params is None else map(float, params[:2]))

    readers = Counter(map(alike, inputs))
    shared: dict[tuple[Any, ...], ActivationQuantizer] = {}
    for layer, one in inputs.items():
        key = alike(layer)
        shared.setdefault(key, ActivationQuantizer(one.format, one.params, readers[key]))
    return {layer: shared[alike(layer)] for layer in inputs}
