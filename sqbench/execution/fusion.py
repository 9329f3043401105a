"""Fusion: a layer does the activation function and the rounding that follow it, while its sums are still in registers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sqbench.execution.codes import CodedLayer, CodeQuantizer
from sqbench.execution.flow import Chain, function_of

log = logging.getLogger(__name__)

# The largest relative change of the output (in norm) that may be rounding. A value on the edge between two codes falls to either
# side, and in a deep model this can grow to the whole quantization error. A module that reads codes where it expects floats changes
# the output by many times its norm.
TOLERANCE = 0.25


@dataclass
class Fusion:
    """One chain of a module tree, with the work that its writer takes over."""

    module: nn.Module
    chain: Chain
    writer: CodedLayer
    post: str
    output: CodeQuantizer | None
    function: nn.Module | None

    def apply(self) -> None:
        """Let the writer do the work of the others."""
        self.writer.fuse(self.post, self.output)
        if self.chain.function is not None:
            self.module.set_submodule(self.chain.function, nn.Identity())

    def undo(self) -> None:
        """Restore the chain as it was."""
        self.writer.fuse("none", None)
        if self.chain.function is not None and self.function is not None:
            self.module.set_submodule(self.chain.function, self.function)


def fuse(module: nn.Module, chains: Sequence[Chain], run: Callable[[], Tensor]) -> int:
    """Fuse every chain whose layers can, in place. Return how many fusions were kept.

    A fusion is kept if it leaves the output of `run` as it is, up to `TOLERANCE`.
    """
    fusions = [fusion for chain in chains if (fusion := _possible(module, chain)) is not None]
    if not fusions:
        return 0
    before = run()
    for fusion in fusions:
        fusion.apply()
    if _same(before, run):
        return len(fusions)
    for fusion in fusions:
        fusion.undo()
    kept = 0
    for fusion in fusions:
        fusion.apply()
        if _same(before, run):
            kept += 1
        else:
            log.debug("%s: something else reads what lies between; not fused", fusion.chain)
            fusion.undo()
    return kept


def _possible(module: nn.Module, chain: Chain) -> Fusion | None:
    writer = module.get_submodule(chain.writer)
    if not isinstance(writer, CodedLayer):
        return None
    function = None if chain.function is None else module.get_submodule(chain.function)
    post = "none" if function is None else function_of(function) or "none"
    reader = None if chain.reader is None else module.get_submodule(chain.reader)
    output = reader.activation if isinstance(reader, CodedLayer) and reader.is_static and reader.unsigned else None
    if not writer.fuses(post) or (function is None and output is None):
        return None
    return Fusion(module, chain, writer, post, output, function)


def _same(before: Tensor, run: Callable[[], Tensor]) -> bool:
    try:
        after = run()
    except (RuntimeError, TypeError, AssertionError):  # codes where floats were expected
        return False
    return bool((after - before).norm() <= TOLERANCE * before.norm())
