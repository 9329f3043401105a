"""The interface of all models, and the sources that models come from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sqbench.config import ModelConfig
from sqbench.formats.scheme import Scheme
from sqbench.models.extent import Extent
from sqbench.models.outline import LayerWidths
from sqbench.models.topology import Topology, discover
from sqbench.quant.layers import stored_bytes


@dataclass(frozen=True)
class Model(ABC):
    """A network, float or quantized.

    Attributes:
        module: the network itself.
        name, fingerprint: the model's name, and the sha256 of its weights.
        keep: fnmatch patterns of layers that stay in float.
        report: the report on its quantization; empty for a float model.
    """

    kind: ClassVar[str]  # kind of the data that it reads: text, sentences or images

    module: Any
    name: str
    fingerprint: str
    keep: tuple[str, ...] = ()
    report: Any = None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def prediction_fingerprint(self) -> str:
        """sha256 of everything that predictions depend on."""
        return self.fingerprint

    @abstractmethod
    def example(self) -> Tensor:
        """A small fixed batch of inputs. It is enough to trace and to prove folds on."""

    def inputs_like(self, hidden: Tensor) -> Tensor:
        """Any inputs of one example that enter as hidden states of this shape: [batch, tokens, width]."""
        return self.example()[:1]

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions: logits, classes last."""

    @abstractmethod
    def body(self, inputs: Tensor) -> Tensor:
        """A forward pass that runs all quantizable layers, and as little else as possible."""

    def bodies(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`body` of each batch, in order. A model that holds one part at a time takes all batches through each part."""
        return (self.body(batch) for batch in batches)

    def forwards(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`forward` of each batch, in order."""
        return (self.forward(batch) for batch in batches)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights as stored: quantized layers in their format, everything else as it is."""
        return stored_bytes(self.module)

    def pinned_layers(self) -> set[str]:
        """Names of the layers that quantization leaves alone."""
        return set()

    def tables(self) -> dict[str, str]:
        """Names of the modules that hold a vector for every token: `embedding` reads tokens, and `head` writes logits."""
        return {}

    @cached_property
    def topology(self) -> Topology:
        """Which layers read which tensors, and where scales may move. It is traced once."""
        example = self.example()
        return discover(
            self.module,
            lambda: self.forward(example),
            body=lambda: self.body(example),
            keep=self.pinned_layers(),
            patterns=self.keep,
        )

    def with_module(self, module: nn.Module, report: Any) -> Self:
        """The same model with another module. The topology stays as it was traced."""
        other = replace(self, module=module, report=report)
        if "topology" in self.__dict__:
            other.__dict__["topology"] = self.topology
        return other


@dataclass(frozen=True)
class Source:
    """Weights that are found and fingerprinted on disk. Nothing is loaded yet.

    Attributes:
        fingerprint: sha256 of everything on disk that can change the model's numbers.
        load: builds the model on a device.
        stream: builds a model whose blocks stay on disk; None if there is no such model.
        context: the longest window of tokens that the model takes; None if it is unknown.
        widths: input channels of its layers, from the architecture alone; None where that is not cheap. Its argument says whether
            the model classifies images by its own head. That head is then one of its layers.
        extent: the model's size, from headers and configurations alone; it returns None where they do not tell.
        quantized: the quantized checkpoint that this float model is compared with. None if there is none.
        folder: the folder of its files; None if they are not in one.
        first: in a plan, the step that must come before the weights are there; empty if they are there.
    """

    fingerprint: str
    load: Callable[[torch.device], Model]
    stream: Callable[[torch.device], Model] | None = None
    context: int | None = None
    widths: Callable[[bool], LayerWidths] | None = None
    extent: Callable[[], Extent | None] = lambda: None
    quantized: "Quantized | None" = None
    folder: Path | None = None
    first: str = ""


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint on disk. Nothing is loaded yet.

    Attributes:
        fingerprint: sha256 of everything on disk that can change the model's numbers.
        load: builds the model with its quantized weights on a device.
        scheme: their formats.
        parent: whether there is a float model to compare with. Else `Source.load` gives the decoded weights.
    """

    fingerprint: str
    load: Callable[[torch.device], Model]
    scheme: Scheme
    parent: bool


@dataclass(frozen=True)
class Loader:
    """A way to find models: the kind of data that they read, and the function that finds one.

    Attributes:
        others: further kinds, whose models lie in the same places. The data of a run decides.
    """

    kind: str
    locate: Callable[[ModelConfig], Source]
    others: Mapping[str, Callable[[ModelConfig], Source]] = field(default_factory=dict)

    @property
    def finds(self) -> Mapping[str, Callable[[ModelConfig], Source]]:
        """Kind of data -> the function that finds a model for it."""
        return {self.kind: self.locate, **self.others}
