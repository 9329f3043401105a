"""A language model whose blocks stay on disk. Memory holds one block at a time, and the hidden states of all inputs.

All inputs go through the first block, then all go through the second block, and so on. The rest of the model (embeddings, masks,
positions, the last norm) runs as it is written, with blocks that do nothing. An example also goes through the whole model. This
proves that one block passes nothing but hidden states to the next.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.errors import UserError, closest, counted
from sqbench.models.base import Model
from sqbench.models.block import BlockModel, Call, block_names, nested
from sqbench.models.checkpoint import Checkpoint
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel, readable
from sqbench.models.parameters import Uses, roles_of
from sqbench.models.plain import make_plain
from sqbench.models.topology import Topology, merged
from sqbench.progress import track
from sqbench.quant.layers import stored_bytes


@dataclass(frozen=True)
class StreamedModel(LanguageModel):
    """A causal LM whose blocks have their parameters on the meta device. `module` holds all other parameters.

    Attributes:
        checkpoint: the source of the blocks' weights.
        where: the device that blocks run on.
        rework: makes the model that inputs go through from a float block.
        stored: block -> bytes of its weights as stored, from the last time that inputs went through it.
        known: number of tokens -> the arguments of every block besides the hidden states of so many tokens.
    """

    checkpoint: Any = None
    where: Any = None
    rework: Callable[[BlockModel], Model] = lambda block: block
    stored: dict[str, int] = field(init=False, default_factory=dict)
    known: dict[int, dict[str, Call]] = field(init=False, default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.where

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the blocks, in order: the children of the largest list of modules."""
        return block_names(self.module)

    @property
    def topology(self) -> Topology:  # not cached here: `_traced` is
        """The topology inside every block: which layers read which tensors."""
        return self._traced[0]

    @cached_property
    def _traced(self) -> tuple[Topology, dict[str, Tensor]]:
        """The topology, and the hidden states that each block reads when the example goes through the whole model.

        Raises:
            UserError: a pattern of `keep` names no layer, or blocks exchange more than hidden states. Running such blocks one by
                one computes another function.
        """
        for pattern in self.keep:
            if not any(fnmatch(name, pattern) for name, _ in self.module.named_modules()):
                raise UserError(f"model.keep={pattern}: matches no layer; {closest(pattern, self.places)}")
        found: list[Topology] = []
        shown: dict[str, Tensor] = {}

        def whole(place: str) -> Callable[..., Any]:
            def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                block = self._load(place)
                shown[place] = hidden
                found.append(replace(block, call=lambda tokens: (args, kwargs), shown=hidden).topology)
                return block.module.get_submodule(place)(hidden, *args, **kwargs)

            return forward

        example = self.example()
        with torch.no_grad(), alone(self.name):
            expected = self._around(example, {place: whole(place) for place in self.places})
            hidden = self.enter(example)
            for place in self.places:
                hidden = self._called(place).forward(hidden)
            if not torch.equal(expected, self.leave(example, hidden)):
                raise UserError(
                    f"blockwise=true: blocks of {self.name} tell each other more than hidden states; use blockwise=false where"
                    " the model fits into memory"
                )
        # points are left out: a tensor that one block passes to the next would be a point of both blocks
        return replace(merged([*found, self._outside(example)]), points=()), shown

    def _outside(self, example: Tensor) -> Topology:
        """The topology around the blocks: the roles of the parameters. Nothing there is quantized."""
        around = _without(self.module, self.places)
        with torch.no_grad(), Uses(around) as uses:
            self._around(example, dict.fromkeys(self.places, _idle), logits=True)
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

    @property
    def stored_bytes(self) -> int:
        """Weight bytes as stored: the blocks that inputs last went through, and everything around them."""
        return stored_bytes(_without(self.module, self.places)) + sum(self.stored.values())

    def _note(self, reports: list[dict[str, Any]]) -> None:
        """Add the reports on blocks to the model's report. Each entry is added once, even if inputs go through again."""
        executed: dict[tuple[str, str], list[str]] = {}
        for entry in (entry for report in reports for entry in report.get("execution", ())):
            executed.setdefault((entry["kernel"], entry["reason"]), []).extend(entry["layers"])
        for key in ("groups", "refused", "per_layer"):
            known = self.report.setdefault(key, [])
            known += [entry for report in reports for entry in report.get(key, ()) if entry not in known]
        self.report["execution"] = [{"kernel": kernel, "reason": why, "layers": names} for (kernel, why), names in executed.items()]
        self.report["fused"] = sum(report.get("fused", 0) for report in reports)

    def of_example(self) -> tuple[Tensor, Tensor]:
        """Logits of the example and the tensor that the head reads, with blocks that do nothing. The head is the same then."""
        assert self._traced  # this refuses blocks that cannot run alone
        example = self.example()
        hidden = self.enter(example)
        return self.leave(example, hidden, logits=True), self.leave(example, hidden)

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
        states = [self.enter(ids) for ids in given]
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
            self._note(reports)
        for index, ids in enumerate(given):
            yield self.leave(ids, states[index], logits=logits)

    @torch.no_grad()
    def enter(self, ids: Tensor) -> Tensor:
        """The hidden states [batch, tokens, width] that the first block reads."""
        seen: list[Tensor] = []

        def first(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(hidden)
            return hidden

        self._around(ids, dict.fromkeys(self.places, _idle) | {self.places[0]: first})
        return seen[0]

    @torch.no_grad()
    def leave(self, ids: Tensor, hidden: Tensor, *, logits: bool = False) -> Tensor:
        """The tensor that the head reads, or the logits, computed from the last block's hidden states."""
        return self._around(ids, dict.fromkeys(self.places, _idle) | {self.places[-1]: lambda *args, **kwargs: hidden}, logits)

    def _load(self, place: str) -> BlockModel:
        """A block with its parameters, alone in a tree of modules. It keeps its name there."""
        outside = copy.copy(self.module.get_submodule(place))
        outside.__dict__.pop("forward", None)
        tree = nested(place, copy.deepcopy(outside))
        self.checkpoint.load([name for name in self.checkpoint.origins if name.startswith(f"{place}.")], tree, self.where)
        make_plain(tree)
        return BlockModel(tree.eval(), f"{self.name}: {place}", self.fingerprint, self._kept(place), place=place)

    def _called(self, place: str) -> BlockModel:
        return replace(self._load(place), call=lambda tokens: self._calls(tokens)[place])

    def _kept(self, place: str) -> tuple[str, ...]:
        """The patterns of `keep` (layers that stay in float) that name a layer of this block."""
        inside = [f"{place}.{name}" for name, _ in self.module.get_submodule(place).named_modules()]
        return tuple(pattern for pattern in self.keep if any(fnmatch(name, pattern) for name in inside))

    @torch.no_grad()
    def _calls(self, tokens: int) -> dict[str, Call]:
        """The arguments of every block besides the hidden states. Only the number of tokens changes them."""
        if tokens not in self.known:
            calls: dict[str, Call] = {}

            def note(place: str) -> Callable[..., Tensor]:
                def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                    calls[place] = (args, kwargs)
                    return hidden

                return forward

            self._around(torch.zeros(1, tokens, dtype=torch.long), {place: note(place) for place in self.places})
            self.known[tokens] = calls
        return self.known[tokens]

    def _around(self, ids: Tensor, forwards: dict[str, Callable[..., Any]], logits: bool = False) -> Tensor:
        """One pass with `forwards` in place of the blocks' own. Their classes and the attributes that the model reads stay."""
        blocks = [self.module.get_submodule(place) for place in self.places]
        for place, block in zip(self.places, blocks, strict=True):
            block.forward = forwards[place]
        try:
            return LanguageModel.forward(self, ids) if logits else LanguageModel.body(self, ids)
        finally:
            for block in blocks:
                del block.forward


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Turn an error inside the `with` statement into a UserError about `blockwise`. The code there runs blocks one by one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"blockwise=true: blocks of {name} do not go from hidden states to hidden states ({error}); use blockwise=false where"
            " the model fits into memory"
        ) from error


def _idle(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward pass of a block that does nothing."""
    return hidden


def _without(module: nn.Module, places: Iterable[str]) -> nn.Module:
    """The same tree over the same tensors, with an identity in place of each block."""
    around = share(module)
    for place in places:
        around.set_submodule(place, nn.Identity())
    return around


def check_readable(checkpoint: Checkpoint, module: Any) -> None:
    """Raise UserError if a tensor of the model is not stored as it is but made from others. No part of it can be read alone."""
    tied = {name for pair in module.all_tied_weights_keys.items() for name in pair}
    if converted := sorted(module.state_dict().keys() - checkpoint.origins.keys() - tied):
        raise UserError(
            f"blockwise=true: transformers makes {counted(converted, 'tensors of the model')} from others while it loads them;"
            " use blockwise=false where the model fits into memory"
        )


def stream_language_model(
    folder: Path, device: torch.device, *, name: str, fingerprint: str, dtype: str, trust_remote_code: bool, keep: tuple[str, ...]
) -> StreamedModel:
    """Load a causal LM and its tokenizer from a local folder (safetensors only), without the weights of its blocks.

    Raises:
        UserError: the folder holds no causal language model that transformers can build, other tensors than the model's, or
            blocks that cannot be read alone.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    precision: torch.dtype = getattr(torch, dtype)
    with readable(name, folder):
        with init_empty_weights(include_buffers=False):  # buffers that are not stored are computed
            config = AutoConfig.from_pretrained(folder, **options)
            # from_pretrained, too, computes buffers in float32 for every dtype of the model.
            module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        places = block_names(module)
        checkpoint = Checkpoint.of(folder, module, precision, f"model.name={name}")
        check_readable(checkpoint, module)
        inside = tuple(f"{place}." for place in places)
        checkpoint.load([known for known in checkpoint.origins if not known.startswith(inside)], module, device)
        module.tie_weights(missing_keys=module.state_dict().keys() - checkpoint.origins.keys())
    module.requires_grad_(False).eval()
    for known, buffer in module.named_buffers():
        buffer.data = buffer.data.to(device, checkpoint.computed.get(known, buffer.dtype))
    return StreamedModel(module, name, fingerprint, keep, tokenizer=tokenizer, checkpoint=checkpoint, where=device)
