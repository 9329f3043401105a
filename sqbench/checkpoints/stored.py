"""A quantized layer as a checkpoint stores it. Plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import QParams

Read = Callable[[str], Tensor]  # a name in the files -> the tensor


@dataclass(frozen=True)
class StoredInput:
    """How a layer's input is rounded.

    Attributes:
        format: of the input. With two levels of scales, its `amax` is the one that the checkpoint has.
        params: of a static format. None if ranges come from the tensor at run time.
    """

    format: Format
    params: QParams | None = None


def _none(read: Read) -> None:
    return None


@dataclass(frozen=True)
class StoredLayer:
    """A quantized layer.

    Attributes:
        weight: the format of its weight [out, in].
        activation: the format of its input. None leaves the input in float.
        names: the tensors of the files that belong to it.
        encoded: reads the weight from the files.
        input: reads how the input is rounded. Nothing is read by default, and the input stays in float.
    """

    weight: Format
    activation: Format | None
    names: tuple[str, ...]
    encoded: Callable[[Read], EncodedTensor]
    input: Callable[[Read], StoredInput | None] = _none


def by_layer(decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `Layout.weights`, for a tensor for each layer."""
    return {f"{layer}.weight": weight for layer, weight in decoded.items()}


@dataclass(frozen=True)
class Layout:
    """A way in which tools store quantized weights.

    Attributes:
        name: what tools call it.
        layers: (the quantization part of the configuration, name -> shape of every tensor, place) -> layer -> how it is stored.
            The entry `metadata` of the configuration has what the headers of the files say besides.
            Raises UserError, which begins with `place`, if something does not fit.
        weights: layer -> its weight [out, in], as transformers names and stacks the tensors of a float checkpoint.
    """

    name: str
    layers: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]], str], dict[str, StoredLayer]]
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = by_layer
