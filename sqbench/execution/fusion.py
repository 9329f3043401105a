"""Activation functions and rounding done by the layer before them, while its sums are still in registers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sqbench.execution.codes import CodedLayer, CodeQuantizer
from sqbench.execution.flow import Chain, function_of

log = logging.getLogger(__name__)

# Relative change (of the norm) of the output that may be rounding: a code on the edge between two falls to either side, and a deep
# model makes up to its whole quantization error of that. What reads codes where it expects floats is off by many times its size.
TOLERANCE = 0.25


@dataclass
class Fusion:
    """One chain of a module tree, with what its writer takes over."""

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
        """As it was."""
        self.writer.fuse("none", None)
        if self.chain.function is not None and self.function is not None:
            self.module.set_submodule(self.chain.function, self.function)


def fuse(module: nn.Module, chains: Sequence[Chain], run: Callable[[], Tensor]) -> int:
    """Fuse every chain whose layers can, in place, and keep what leaves the output of `run` as it is; how many were kept."""
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
