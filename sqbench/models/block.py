"""One block of a language model as a model of its own, which reads hidden states and writes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from sqbench.errors import UserError
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
        call: number of tokens -> the block's arguments besides the hidden states.
        shown: the hidden states that it reads in the language model's example.
        whole: the topology of all blocks, without its refused and floating entries; None before it is known.
    """

    kind = "text"

    place: str = ""
    number: int = 0
    call: Callable[[int], Call] = field(default=lambda tokens: ((), {}))
    shown: Any = None
    whole: Topology | None = None

    def example(self) -> Tensor:
        """Hidden states [2, 12, width] of the language model's example."""
        shown: Tensor = self.shown
        return shown

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states for the next block."""
        args, kwargs = self.call(hidden.shape[1])
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

    Raises:
        UserError: there is no such list.
    """
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part) > 0}
    if not lists:
        raise UserError(f"blockwise=true: {type(module).__name__} has no list of blocks; use blockwise=false")
    name = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    return tuple(f"{name}.{number}" for number in range(len(lists[name])))


def nested(name: str, module: nn.Module) -> nn.Module:
    """A tree of modules that holds one module under its full name."""
    for part in reversed(name.split(".")):
        tree = nn.Module()
        tree.add_module(part, module)
        module = tree
    return module
