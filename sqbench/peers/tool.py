"""The interface of a tool that quantizes a whole language model and saves a checkpoint that `sqbench.checkpoints` reads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from torch import Tensor

from sqbench.errors import UserError
from sqbench.formats.scheme import Scheme


@dataclass(frozen=True)
class Order:
    """What a tool is asked for.

    Attributes:
        scheme: the formats of all layers that are not left in float.
        ignore: names of the linear layers that stay in float. The output embedding is one of them.
        arguments: those of the tool itself, in place of its own defaults.
        seed: of the tool's random choices.
    """

    scheme: Scheme
    ignore: tuple[str, ...]
    arguments: Mapping[str, Any]
    seed: int


class Tool(ABC):
    """A tool. Importing its file imports no package of the tool.

    Attributes:
        name: the value of `method.tool`.
        package: its distribution, whose version is part of a point's identity.
        install: the command that installs it beside sqbench.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    install: ClassVar[str]

    @property
    def version(self) -> str:
        """The version that is installed.

        Raises:
            UserError: none is.
        """
        try:
            return version(self.package)
        except PackageNotFoundError as error:
            raise UserError(f"method.tool={self.name}: needs {self.package}, which is not installed; {self.install}") from error

    @abstractmethod
    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        """The reason why the tool cannot make a scheme, or takes no such arguments. None if it can. Nothing is imported for it."""

    @abstractmethod
    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        """Quantize a model, and save it as a checkpoint. This runs in a process of its own, in a folder that is removed after it.

        Args:
            module: as transformers loads it. It may be changed.
            windows: token ids [windows, tokens] to calibrate on: all of them, in this order or another.
            folder: an empty folder for the checkpoint, with its config.json and its tokenizer.
        """


TOOLS: dict[str, Tool] = {}


def register(cls: type[Tool]) -> type[Tool]:
    """Make a tool known by its name."""
    assert cls.name not in TOOLS, cls.name
    TOOLS[cls.name] = cls()
    return cls
