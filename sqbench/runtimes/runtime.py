"""What every runtime is: the formats that it executes, and how a model becomes a graph that it runs."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.nn import Module

from sqbench.console.extras import extra
from sqbench.errors import UserError
from sqbench.formats.accepts import Accepts, Multiples
from sqbench.formats.format import TIES, Format
from sqbench.formats.scale import TIMES, Scale
from sqbench.models.base import Model
from sqbench.models.functions import Function, constant_layers
from sqbench.quant.layers import ActivationQuantizer, Encoded

DTYPES = ("float32", "float16", "bfloat16")
STORED = tuple(Scale(dtype, times=times) for dtype in DTYPES for times in TIMES)
WIDTHS = range(2, 9)
MARK = ".product/"  # comes behind the name of a product of two activations in names of a graph
SYMMETRIC = ("qmax", "half_range", "signed", "no_clipping")


def integer_products(title: str) -> Accepts:
    """The formats of weights that a runtime multiplies as integers."""
    return Accepts(
        f"8-bit products of {title} take weights",
        {"bits": WIDTHS, "granularity": ("tensor", "channel"), "convention": SYMMETRIC, "ties": TIES, "scale": STORED},
    )


def unpacked(title: str, sizes: Collection[int | None] | Multiples) -> Accepts:
    """The formats of weights that a runtime unpacks to floats. `sizes` are those of groups, and None."""
    return Accepts(
        f"{title} unpacks weights",
        {
            "bits": WIDTHS,
            "symmetric": (True, False),
            "granularity": ("tensor", "channel", "group"),
            "group_size": sizes,
            "convention": SYMMETRIC,
            "range": ("with_zero", "own"),
            "shift": ("after", "before"),
            "ties": TIES,
            "scale": STORED,
        },
    )


def static(title: str, shifts: Collection[str], what: str = "inputs") -> Accepts:
    """The formats of what is rounded with static ranges."""
    return Accepts(f"{title} rounds {what}", {"symmetric": (True, False), "convention": ("qmax", "half_range"), "shift": shifts})


def at_run_time(title: str, sharing: Mapping[str, Collection[Any] | Multiples]) -> Accepts:
    """The formats of inputs whose ranges are found at run time, by what shares a range."""
    return Accepts(f"{title} rounds inputs at run time", {**sharing, "dynamic": (True,)})


class Executed(NamedTuple):
    """How a runtime executes a layer or a product of activations: its name for the kernel, and whether that multiplies integers."""

    kernel: str
    integers: bool


class Session(ABC):
    """A graph that a runtime has made ready. A call computes it."""

    @abstractmethod
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, on the CPU. Both have the order in which the graph was written. The next call may write over outputs."""

    @abstractmethod
    def executed(self) -> Mapping[str, Executed]:
        """Quantized layer, or product of two activations (see `quant.products`) -> how it is executed."""


class Runtime(ABC):
    """A program that runs models.

    Attributes:
        name: the value of `backend`.
        title: its own name.
        package: what its module and its distribution are called.
        file: the name of the file that it reads.
        between: the formats of tensors that are rounded between layers.
        folds: whether it computes layers that read constants alone while a graph is written, so that their codes are lost.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str]
    file: ClassVar[str]
    between: ClassVar[Accepts]
    folds: ClassVar[bool] = False

    @abstractmethod
    def accepted(self, inputs: Format | None) -> tuple[Accepts, Accepts | None]:
        """The formats of weights beside such inputs, and the formats of inputs like these. None for float inputs."""

    @abstractmethod
    def write(self, function: Function, parts: Mapping[str, Encoded]) -> Any:
        """The graph of a function.

        Args:
            function: the encoded parts of its module are replaced here, and the quantizers between layers.
            parts: path in the function -> quantized layer or encoded table. The graph holds the codes of a tied matrix once.
        """

    @abstractmethod
    def save(self, graph: Any, place: Path) -> None:
        """Write a graph as a file, and what belongs to it beside it."""

    @abstractmethod
    def start(self, graph: Any, *, any_rows: bool = False) -> Session:
        """Make a graph ready. A graph that was read from a file is as good as one that was written just now.

        Args:
            any_rows: whether it computes rows that do not depend on each other, so that it is ready for any number of them at once.
        """

    @abstractmethod
    def read(self, path: Path) -> Any:
        """The graph in a file."""

    def require(self, key: str) -> None:
        """Raise UserError that names `key` and the extra if the runtime is not installed."""
        with extra("runtimes", key):
            import_module(self.package)

    def version(self) -> str:
        """Its name and version."""
        return f"{self.title} {version(self.package)}"

    def refusal(self, weights: Format | None, inputs: Format | None) -> str | None:
        """The reason why it has no such layer, as a sentence that says what fits. None if it has."""
        if weights is None:
            return f"{self.title} takes quantized weights, and these are float"
        of_weights, of_inputs = self.accepted(inputs)
        return of_weights.refusal(weights) or (None if of_inputs is None or inputs is None else of_inputs.refusal(inputs))

    def check_together(self, inputs: Mapping[str, tuple[int, Format | None]]) -> None:  # noqa: B027  # most have no such rule
        """Raise UserError if layers that it has alone do not fit each other.

        Args:
            inputs: layer -> how many inputs a row of its weight reads, and their format.
        """

    def check_constants(self, key: str, model: Model, layers: Collection[str]) -> None:
        """Raise UserError that names `key` and a layer that it folds."""
        if self.folds and (found := constant_layers(model, layers)):
            raise UserError(f"{key}: {found[0]} reads constants alone, and {self.title} folds it; use ONNX Runtime, which does not")

    def check(self, key: str, layer: str, weights: Format | None, inputs: Format | None) -> None:
        """Raise UserError that names `key` and the layer if the runtime has no such layer."""
        if (reason := self.refusal(weights, inputs)) is not None:
            raise UserError(f"{key}: {layer} cannot be written; {reason}")

    def check_between(self, key: str, place: str, quantizer: Module) -> None:
        """Raise UserError that names `key` and the place if the runtime does not round between layers as a quantizer does."""
        if type(quantizer) is not ActivationQuantizer:
            raise UserError(f"{key}: {place} cannot be written; {type(quantizer).__name__} rounds it")
        if (reason := self.between.refusal(quantizer.fmt)) is not None:
            raise UserError(f"{key}: {place} cannot be written; {reason}; use bits.ops=linear, or such a format")
