"""One block of a model as a model of its own, which reads hidden states and writes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.topology import Topology, discover
from sqbench.models.tracing import first_tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a block besides the hidden states


@dataclass(frozen=True)
class BlockModel(Model):
    """One block as a model of its own, which reads hidden states [batch, tokens, width]. Its layers keep their names.

    Attributes:
        place: the block's name.
        number: its index among the blocks.
        call: hidden states -> the block's arguments besides them.
        shown: the hidden states that it reads in the whole model's example.
        whole: the topology of all blocks, without its refused and floating entries; None before it is known.
    """

    kind = "text"

    place: str = ""
    number: int = 0
    call: Callable[[Tensor], Call] = field(default=lambda hidden: ((), {}))
    shown: Any = None
    whole: Topology | None = None

    def example(self) -> Tensor:
        """Hidden states of the whole model's example, [2, 12, width] of a language model."""
        shown: Tensor = self.shown
        return shown

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states for the next block."""
        args, kwargs = self.call(hidden)
        return first_tensor(self.module.get_submodule(self.place)(hidden, *args, **kwargs))

    def body(self, hidden: Tensor) -> Tensor:
        """The same as `forward`, because a block has no head."""
        return self.forward(hidden)

    @cached_property
    def topology(self) -> Topology:
        """The topology of all blocks once it is known, because a layer's place among all layers matters. Before, its own."""
        return self.whole or discover(self.module, lambda: self.forward(self.example()), patterns=self.keep, part=True)


def block_names(module: nn.Module) -> tuple[str, ...]:
    """Names of a model's blocks, in order: the children of the list of modules that holds the most parameters.

    Empty if there is no such list.
    """

    def size(part: nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    lists = {
        name: part
        for name, part in module.named_modules()
        if name and isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > 0
    }
    name = max(lists, key=lambda name: size(lists[name]), default="")
    return tuple(f"{name}.{number}" for number in range(len(lists[name]))) if name else ()


def nested(name: str, module: nn.Module) -> nn.Module:
    """A tree of modules that holds one module under its full name."""
    for part in reversed(name.split(".")):
        tree = nn.Module()
        tree.add_module(part, module)
        module = tree
    return module
