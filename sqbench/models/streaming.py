"""A language model whose blocks stay on disk. Memory holds one block at a time, and the hidden states of all inputs.

All inputs go through the first block, then all go through the second block, and so on.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.console.progress import track
from sqbench.errors import UserError, closest
from sqbench.models.base import Model
from sqbench.models.block import BlockModel, Call, block_names, nested
from sqbench.models.blocks import Blocks, merge_reports
from sqbench.models.experts import split_experts, stack_experts
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel
from sqbench.models.parameters import Uses, roles_of
from sqbench.models.plain import make_plain
from sqbench.models.topology import Topology, merged
from sqbench.quant.layers import stored_bytes

OTHERWISE = "use blockwise=false where the model fits into memory"


@dataclass(frozen=True)
class StreamedModel(LanguageModel):
    """A causal LM whose blocks have their parameters on the meta device. `module` holds all other parameters.

    Attributes:
        checkpoint: the source of the blocks' weights.
        where: the device that blocks run on.
        rework: makes the model that inputs go through from a float block.
        stored: block -> bytes of its weights as stored, from the last time that inputs went through it.
        known: as in `Blocks`.
    """

    checkpoint: Any = None
    where: Any = None
    rework: Callable[[BlockModel], Model] = lambda block: block
    stored: dict[str, int] = field(init=False, default_factory=dict)
    known: dict[tuple[int, ...], dict[str, Call]] = field(init=False, default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.where

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the blocks, in order.

        Raises:
            UserError: the model has no list of blocks.
        """
        return listed(self.module)

    @property
    def blocks(self) -> Blocks:  # not cached: it would hold the model that holds it
        """The blocks, and what is around them."""
        body, forward = partial(LanguageModel.body, self), partial(LanguageModel.forward, self)
        return Blocks(self.module, self.places, body, forward, self.inputs_like, "blockwise=true", OTHERWISE, self.known)

    @property
    def topology(self) -> Topology:  # not cached here: `_traced` is
        """The topology inside every block: which layers read which tensors."""
        return self._traced[0]

    @cached_property
    def _traced(self) -> tuple[Topology, dict[str, Tensor]]:
        """The topology, and the hidden states that each block reads when the example goes through the whole model.

        Raises:
            UserError: a pattern of `keep` names no layer, or blocks exchange more than hidden states.
        """
        for pattern in self.keep:
            if not any(fnmatch(name, pattern) for name, _ in self.module.named_modules()):
                raise UserError(f"model.keep={pattern}: matches no layer; {closest(pattern, self.places)}")
        found: dict[str, Topology] = {}

        def run(place: str, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            block = self._load(place)
            if place not in found:
                found[place] = replace(block, call=lambda hidden: (args, kwargs), shown=hidden).topology
            return block.module.get_submodule(place)(hidden, *args, **kwargs)

        example = self.example()
        shown = self.blocks.prove(self.name, example, run)
        # points are left out: a tensor that one block passes to the next would be a point of both blocks
        return replace(merged([*found.values(), self._outside(example)]), points=()), shown

    def _outside(self, example: Tensor) -> Topology:
        """The topology around the blocks: the roles of the parameters. Nothing there is quantized."""
        around = _without(self.module, self.places)
        with torch.no_grad(), Uses(around) as uses:
            self.blocks.idle(example, logits=True)
        roles = roles_of(around, uses, (), (), self.pinned_layers())
        reason = "it is outside the blocks, and blockwise=true quantizes what is in them; use blockwise=false"
        left = (name for name, role in roles.items() if role == "floating")
        return Topology((), {}, (), (), (), floating=tuple((name.removesuffix(".weight"), reason) for name in left), roles=roles)

    def then(self, step: Callable[[Model], Model], report: dict[str, Any] | None = None) -> "StreamedModel":
        """The same model with one more step: `step` is applied to each block after all earlier steps.

        Args:
            report: the report on the model as a whole. Each block's own report is added when inputs go through it.
        """
        before = self.rework
        other = replace(self, rework=lambda block: step(before(block)), report=self.report if report is None else report)
        other.__dict__["_traced"] = self._traced
        return other

    def with_module(self, module: nn.Module, report: Any) -> "StreamedModel":
        """The same model with another module around its blocks."""
        other = replace(self, module=module, report=report)
        other.__dict__["_traced"] = self._traced
        return other

    @property
    def stored_bytes(self) -> int:
        """Weight bytes as stored: the blocks that inputs last went through, and everything around them."""
        return stored_bytes(_without(self.module, self.places)) + sum(self.stored.values())

    def of_example(self) -> tuple[Tensor, Tensor]:
        """Logits of the example and the tensor that the head reads, with blocks that do nothing. The head is the same then."""
        assert self._traced  # this refuses blocks that cannot run alone
        example = self.example()
        hidden = self.blocks.enter(example)
        return self.blocks.leave(example, hidden, logits=True), self.blocks.leave(example, hidden)

    def block(self, number: int) -> BlockModel:
        """A float block, read from disk by this call. It stays in memory as long as the caller keeps it."""
        place, (topology, shown) = self.places[number], self._traced
        return replace(self._called(place), number=number, shown=shown[place], whole=replace(topology, refused=(), floating=()))

    def bodies(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return self._through(batches, logits=False)

    def forwards(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return self._through(batches, logits=True)

    def body(self, ids: Tensor) -> Tensor:
        """The tensor that the head reads. Each call reads the whole model for one batch. Use `bodies` for many batches."""
        return next(self.bodies([ids]))

    def forward(self, ids: Tensor) -> Tensor:
        """The logits. Each call reads the whole model for one batch. Use `forwards` for many batches."""
        return next(self.forwards([ids]))

    @torch.no_grad()
    def _through(self, batches: Iterable[Tensor], logits: bool) -> Iterator[Tensor]:
        assert self._traced
        given = list(batches)
        states = [self.blocks.enter(ids) for ids in given]
        reports = []
        for number, place in enumerate(track(self.places, "blocks")):
            reworked = self.rework(self.block(number))
            self.stored[place] = reworked.stored_bytes
            reports.append(reworked.report or {})
            for index, hidden in enumerate(states):
                states[index] = reworked.body(hidden)
            if not all(bool(hidden.isfinite().all()) for hidden in states):
                raise FloatingPointError(f"{place} of {self.name} writes NaN or infinity")
            del reworked  # frees its memory before the next one is read
        if self.report is not None:
            merge_reports(self.report, reports)
        for index, ids in enumerate(given):
            yield self.blocks.leave(ids, states[index], logits=logits)

    def _load(self, place: str) -> BlockModel:
        """A block with its parameters, alone in a tree of modules. It keeps its name there."""
        outside = copy.copy(self.module.get_submodule(place))
        outside.__dict__.pop("forward", None)
        tree = nested(place, copy.deepcopy(outside))
        stack_experts(tree)
        self.checkpoint.load([name for name in self.checkpoint.origins if name.startswith(f"{place}.")], tree, self.where)
        make_plain(tree)
        split_experts(tree)
        return BlockModel(tree.eval(), f"{self.name}: {place}", self.fingerprint, self._kept(place), place=place)

    def _called(self, place: str) -> BlockModel:
        return replace(self._load(place), call=lambda hidden: self.blocks.call(place, hidden))

    def _kept(self, place: str) -> tuple[str, ...]:
        """The patterns of `keep` (layers that stay in float) that name a layer of this block."""
        inside = [f"{place}.{name}" for name, _ in self.module.get_submodule(place).named_modules()]
        return tuple(pattern for pattern in self.keep if any(fnmatch(name, pattern) for name in inside))


def listed(module: nn.Module) -> tuple[str, ...]:
    """Names of a model's blocks, in order.

    Raises:
        UserError: the model has no list of blocks.
    """
    if not (places := block_names(module)):
        raise UserError(f"blockwise=true: {type(module).__name__} has no list of blocks; use blockwise=false")
    return places


def _without(module: nn.Module, places: Iterable[str]) -> nn.Module:
    """The same tree over the same tensors, with an identity in place of each block."""
    around = share(module)
    for place in places:
        around.set_submodule(place, nn.Identity())
    return around
