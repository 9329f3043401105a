"""Experts of a mixture during calibration: the tokens that are routed to each, and experts with too few of them.

An expert to which fewer than FEW tokens are routed takes its statistics from all tokens of its block. They are the tokens of its
neighbours and its own. The expert itself computes what its last layer reads from them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sqbench.models.expert_layout import Expert
from sqbench.models.experts import feeding

FEW = 32  # tokens. A range of fewer is that of single tokens, and a Gram matrix of fewer has next to no rank.


class Routed:
    """Counts the tokens that are routed to the experts of a model.

    Attributes:
        tokens: name of an expert -> tokens. Empty before a pass inside `counting`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tokens: dict[str, int] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside a `with` block."""
        self.tokens = {name: 0 for name, part in self.module.named_modules() if isinstance(part, Expert)}

        def count(name: str) -> Callable[..., None]:
            def hook(expert: nn.Module, args: tuple[Any, ...]) -> None:
                rows: Tensor = args[0]
                self.tokens[name] += rows.shape[1]

            return hook

        handles = [self.module.get_submodule(name).register_forward_pre_hook(count(name)) for name in self.tokens]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def few(self, site: str) -> bool:
        """Whether a layer is in an expert with too few tokens. False before they are counted."""
        return self.tokens.get(expert_of(site), FEW) < FEW

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Let experts with too few tokens read all tokens of their block inside a `with` block. The model computes the same."""
        with feeding(self.module, lambda name, _: self.tokens[name] < FEW):
            yield


def expert_of(layer: str) -> str:
    """The name of the expert that a layer is in. The name of another module for a layer that is in none."""
    return layer.rpartition(".")[0]
