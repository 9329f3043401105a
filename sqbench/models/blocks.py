"""A model as a row of blocks. Inputs enter as hidden states, go through one block after the other, and leave as predictions.

What is around the blocks (embeddings, masks, positions, the last norm) runs as it is written, with blocks that do nothing. An
example also goes through the whole model. This proves that one block passes nothing but hidden states to the next.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.block import BlockModel, Call, block_names, nested
from sqbench.models.folding import share
from sqbench.models.topology import Topology
from sqbench.models.tracing import first_tensor
from sqbench.quant.access import weight_of

# From a block's name, hidden states and other arguments to its output.
Run = Callable[[str, Tensor, tuple[Any, ...], dict[str, Any]], Any]


class _Entered(Exception):
    """Ends a forward pass at the first block."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model, and what is around them.

    Attributes:
        module: the whole model. The blocks' parameters may be on the meta device.
        places: names of the blocks, in order.
        body, forward: passes of `module`, as in `Model`.
        inputs_like: hidden states -> any model inputs that enter as states of the same shape.
        asked: what needs blocks, for messages: `blockwise=true`.
        otherwise: what to do without them.
        known: shape of the hidden states of one example -> the arguments of every block besides these.
    """

    module: nn.Module
    places: tuple[str, ...]
    body: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    inputs_like: Callable[[Tensor], Tensor]
    asked: str
    otherwise: str
    known: dict[tuple[int, ...], dict[str, Call]] = field(default_factory=dict)

    @torch.no_grad()
    def enter(self, inputs: Tensor) -> Tensor:
        """The hidden states [batch, tokens, width] that the first block reads. The pass ends there."""
        seen: list[Tensor] = []

        def first(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(hidden)
            raise _Entered

        with suppress(_Entered):
            self._around(inputs, {self.places[0]: first})
        return seen[0]

    @torch.no_grad()
    def leave(self, inputs: Tensor, hidden: Tensor, *, logits: bool = False) -> Tensor:
        """The tensor that the head reads, or the logits, computed from the last block's hidden states."""
        return self._around(inputs, {self.places[-1]: lambda *args, **kwargs: hidden}, logits)

    @torch.no_grad()
    def call(self, place: str, hidden: Tensor) -> Call:
        """The arguments of a block besides the hidden states. Only the shape of an example changes them."""
        key = tuple(hidden.shape[1:])
        if key not in self.known:
            calls: dict[str, Call] = {}

            def note(name: str) -> Callable[..., Tensor]:
                def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                    calls[name] = (args, kwargs)
                    return hidden

                return forward

            self._around(self.inputs_like(hidden), {name: note(name) for name in self.places})
            self.known[key] = calls
        return self.known[key][place]

    def prove(self, name: str, example: Tensor, run: Run) -> dict[str, Tensor]:
        """The hidden states that each block reads when an example goes through the whole model.

        Args:
            name: of the model, for messages.
            run: one block's forward pass.

        Raises:
            UserError: blocks exchange more than hidden states. Running such blocks one by one computes another function.
        """
        shown: dict[str, Tensor] = {}

        def whole(place: str) -> Callable[..., Any]:
            def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                shown[place] = hidden
                return run(place, hidden, args, kwargs)

            return forward

        with torch.no_grad(), self._alone(name):
            expected = self._around(example, {place: whole(place) for place in self.places})
            hidden = self.enter(example)
            for place in self.places:
                hidden = first_tensor(run(place, hidden, *self.call(place, hidden)))
            if not torch.equal(expected, self.leave(example, hidden)):
                raise UserError(f"{self.asked}: blocks of {name} tell each other more than hidden states; {self.otherwise}")
        return shown

    def idle(self, inputs: Tensor, *, logits: bool = False) -> Tensor:
        """One pass with blocks that do nothing."""
        return self._around(inputs, {}, logits)

    def _around(self, inputs: Tensor, forwards: Mapping[str, Callable[..., Any]], logits: bool = False) -> Tensor:
        """One pass with `forwards` in place of the blocks' own. Blocks without one do nothing.

        Their classes and the attributes that the model reads stay.
        """
        blocks: list[Any] = [self.module.get_submodule(place) for place in self.places]
        before = [block.__dict__.get("forward") for block in blocks]
        for place, block in zip(self.places, blocks, strict=True):
            block.forward = forwards.get(place, _idle)
        try:
            return self.forward(inputs) if logits else self.body(inputs)
        finally:
            for block, own in zip(blocks, before, strict=True):
                del block.forward
                if own is not None:
                    block.forward = own

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Turn an error inside the `with` statement into a UserError. The code there runs blocks one by one."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.asked}: blocks of {name} do not go from hidden states to hidden states ({error}); {self.otherwise}"
            ) from error


@dataclass(frozen=True)
class HeldBlocks(Blocks):
    """The blocks of a model that is whole in memory.

    Attributes:
        model: the model, with a topology in which nothing crosses a block (`inside`).
        shown: the hidden states that each block reads in the model's example.
    """

    model: Any = None
    shown: Mapping[str, Tensor] = field(default_factory=dict)

    def over(self, model: Model) -> "HeldBlocks":
        """The blocks of the same model with other modules around them."""
        return replace(self, module=model.module, body=model.body, forward=model.forward, model=model, known={})

    def block(self, number: int) -> BlockModel:
        """A block as a model of its own. It shares its tensors with the model."""
        place, model = self.places[number], self.model
        return BlockModel(
            nested(place, self.module.get_submodule(place)),
            f"{model.name}: {place}",
            model.fingerprint,
            place=place,
            number=number,
            call=lambda hidden: self.call(place, hidden),
            shown=self.shown[place],
            whole=replace(model.topology, refused=(), floating=()),
        )


def held_blocks(model: Model, asked: str, otherwise: str) -> HeldBlocks:
    """The blocks of a model in memory. The model stays as it is.

    Raises:
        UserError: the model has no blocks, most of what is quantized is around them, or they exchange more than hidden states.
    """
    module = share(model.module)  # whose blocks get other forward passes for a moment
    places = block_names(module)
    sizes = {name: weight_of(module.get_submodule(name)).numel() for name in model.topology.layers}
    if sum(size for name, size in sizes.items() if place_of(name, places)) < sum(sizes.values()) / 2:
        raise UserError(f"{asked}: {model.name} has no list of blocks that holds most of its layers; {otherwise}")
    whole = model.with_module(module, model.report)
    whole.__dict__["topology"] = inside(model.topology, places)
    row = HeldBlocks(module, places, whole.body, whole.forward, model.inputs_like, asked, otherwise, model=whole)
    run = {place: module.get_submodule(place).forward for place in places}
    shown = row.prove(model.name, model.example(), lambda place, hidden, args, kwargs: run[place](hidden, *args, **kwargs))
    return replace(row, shown=shown)


def place_of(name: str, places: Iterable[str]) -> str:
    """The block that a module is in. Empty if it is in none."""
    return next((place for place in places if name.startswith(f"{place}.")), "")


def inside(topology: Topology, places: tuple[str, ...]) -> Topology:
    """A topology in which no scale, BatchNorm or shared tensor crosses from one block to another. What did is refused."""
    homes = {name: place_of(name, places) for name in topology.layers}
    refused = list(topology.refused)

    def kept(found: Iterable[Any], parts: Callable[[Any], tuple[str, ...]], told: Callable[[Any], str]) -> tuple[Any, ...]:
        stay = []
        for one in found:
            if len({place_of(part, places) for part in parts(one)}) == 1:
                stay.append(one)
            else:
                refused.append((told(one), "it crosses from one block to another, and each block is calibrated alone"))
        return tuple(stay)

    groups, pairs = (kept(found, lambda group: (group.source, *group.readers), str) for found in (topology.groups, topology.pairs))
    batchnorms = kept(topology.batchnorms, tuple, " -> ".join)
    first: dict[tuple[str, str], str] = {}
    site = {name: first.setdefault((topology.site[name], homes[name]), name) for name in topology.layers}
    norms = {
        own: topology.norms[topology.site[own]] for own in dict.fromkeys(site.values()) if topology.site[own] in topology.norms
    }
    return replace(
        topology, site=site, groups=groups, pairs=pairs, batchnorms=batchnorms, refused=tuple(refused), norms=norms, points=()
    )


def _idle(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward pass of a block that does nothing."""
    return hidden


def merge_reports(report: dict[str, Any], reports: Iterable[dict[str, Any]]) -> None:
    """Add the reports on blocks to that on the whole model, in place. An entry that is already there is not added again."""
    reports = list(reports)
    executed: dict[tuple[str, str], list[str]] = {}
    for entry in (entry for one in reports for entry in one.get("execution", ())):
        executed.setdefault((entry["kernel"], entry["reason"]), []).extend(entry["layers"])
    for key in ("groups", "refused", "per_layer"):
        known = report.setdefault(key, [])
        known += [entry for one in reports for entry in one.get(key, ()) if entry not in known]
    if unreached := [entry for one in reports for entry in one.get("unreached", ())]:  # a key of mixtures of experts alone
        named = report.setdefault("unreached", [])
        named += [entry for entry in unreached if entry not in named]
    if executed:
        report["execution"] = [{"kernel": kernel, "reason": why, "layers": names} for (kernel, why), names in executed.items()]
        report["fused"] = sum(one.get("fused", 0) for one in reports)
