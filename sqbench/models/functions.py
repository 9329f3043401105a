"""A model as a function of named tensors, which other programs can trace."""

import inspect
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models import key_values
from sqbench.models.base import Model
from sqbench.models.encoder import VECTORS, EncoderModel
from sqbench.models.experts import has_experts
from sqbench.models.folding import share
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.models.pooling import Pooling
from sqbench.models.tracing import first_tensor


@dataclass(frozen=True)
class Function:
    """A module that reads and gives tensors alone, which other programs can trace.

    Attributes:
        module: shares the model's tensors, and may be changed.
        example: its inputs by name, in order.
        outputs: the names of its outputs, in order.
        free: name of an input or output -> axis -> what it counts. All other axes have one size.
    """

    module: nn.Module
    example: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]]

    def name_in_model(self, path: str) -> str:
        """The name in the model of what has this path in the function without its head."""
        return path.removeprefix("module.") if isinstance(self.module, OfTokens | OfTexts) else path


class OfTokens(nn.Module):
    """A language model as a function of token ids [batch, tokens] that come after those in a KV cache. The cache may be empty.

    It makes the mask of attention itself. Code of transformers that finds a mask has operations that converters do not know.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits, and the tensors of the cache with the further tokens.

        Args:
            attention_mask: [batch, past and further tokens], 0 for padding.
            position_ids: [batch, tokens].
            past: as `key_values.tensors` gives them.
        """
        cache = key_values.empty_cache(self.module)
        key_values.keep(cache, past)
        seen = past[0].shape[2]
        places = torch.arange(seen + input_ids.shape[1], device=input_ids.device)
        later = places.unsqueeze(0) > places[seen:].unsqueeze(1)
        unseen = later.unsqueeze(0) | (attention_mask == 0).unsqueeze(1)
        mask = unseen.float().mul(torch.finfo(torch.float32).min).unsqueeze(1)
        given = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids, "use_cache": True}
        logits = self.module(**given, **key_values.as_argument(self.module, cache)).logits
        return (logits, *key_values.tensors(cache))


class OfTexts(nn.Module):
    """An encoder as a function of its inputs, [texts, tokens] each. The mask, the last of them, is 0 for padding.

    Attributes:
        pooling: how hidden states become vectors. None leaves them as they are.
        head: a classifier on the vectors.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], pooling: Pooling | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.module, self.names, self.pooling, self.head = module, tuple(names), pooling, head

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = first_tensor(self.module(**dict(zip(self.names, inputs, strict=True))))
        if self.pooling is not None:
            outputs = self.pooling.padded(outputs, inputs[-1])
        return outputs if self.head is None else self.head(outputs)


def untraceable(model: Model) -> str | None:
    """The reason why a model is no function that other programs can trace. None if it is one."""
    if isinstance(model, ImageModel | EncoderModel):
        return None
    if not isinstance(model, LanguageModel):
        return f"it reads {model.kind}"
    takes = inspect.signature(model.module.forward).parameters
    if "position_ids" not in takes:
        return f"{type(model.module).__name__} takes no position_ids"
    if not {"cache", key_values.PAST} & takes.keys():
        return f"{type(model.module).__name__} takes no KV cache"
    if getattr(model.module, "_is_stateful", False):
        return f"{type(model.module).__name__} has a state other than a KV cache"
    if has_experts(model.module):
        return f"{type(model.module).__name__} routes tokens to experts, so its operations depend on its input"
    config = model.module.config
    if (kinds := set(getattr(config, "layer_types", None) or ())) - {"full_attention"}:
        return f"{type(model.module).__name__} has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{type(model.module).__name__} attends to a sliding window"
    return None


@torch.no_grad()
def constant_layers(model: Model, layers: Collection[str]) -> list[str]:
    """The layers that read the same whatever the model reads, such as those of relative positions (DeBERTa, Swin 2)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
        for name in layers
    ]
    try:
        for inputs in (model.example(), model.example().flip(-1)):
            model.body(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, found in seen.items() if len(found) == 2 and torch.equal(*found)]


def whole(model: Model) -> Function:
    """The function of a model that gives `model.forward`."""
    if isinstance(model, LanguageModel):
        return _of_tokens(model, share(model.module), "logits")
    if isinstance(model, EncoderModel):
        pooling = model.pooling if model.task in VECTORS else None
        return _of_texts(model, OfTexts(share(model.module), names_of(model), pooling, model.head))
    assert isinstance(model, ImageModel)
    module = share(model.module)
    return _of_images(model, module if model.head is None else nn.Sequential(module, model.head).eval())


def without_head(model: Model) -> Function:
    """The function of a model that gives `model.body`.

    A language model whose logits are not its output embedding alone keeps its head.
    """
    if isinstance(model, EncoderModel):
        return _of_texts(model, OfTexts(share(model.module), names_of(model)))
    if not isinstance(model, LanguageModel):
        return _of_images(model, share(model.module))
    module: Any = share(model.module)
    if model.head is not None:
        module.set_submodule(model.tables()["head"], nn.Identity())
    return _of_tokens(model, module, "outputs")


def head_alone(model: LanguageModel, head: nn.Module) -> Function:
    """The function from hidden states [rows, width] to logits. `head` is the model's own, and has the path `0`."""
    states = model.body(model.example()).flatten(0, -2)
    free = {0: "rows"}
    return Function(nn.Sequential(head).eval(), {"states": states}, ("logits",), {"states": free, "logits": free})


def names_of(model: EncoderModel) -> tuple[str, ...]:
    """The names of what the functions of an encoder read, in order."""
    return (*model.fields, "attention_mask")


def _of_images(model: Model, module: nn.Module) -> Function:
    free = {0: "batch"}
    return Function(module, {"inputs": model.example()}, ("outputs",), {"inputs": free, "outputs": free})


def _of_texts(model: EncoderModel, module: OfTexts) -> Function:
    example = model.named(model.example())
    free = {0: "batch", 1: "tokens"}
    outputs = free if module.eval()(*example.values()).dim() == 3 else {0: "batch"}  # vectors and scores have no tokens
    return Function(module, example, ("outputs",), {**dict.fromkeys(example, free), "outputs": outputs})


def _of_tokens(model: LanguageModel, module: nn.Module, output: str) -> Function:
    """A language model as `OfTokens`. Some tokens of the example are in the cache."""
    ids, seen = model.example(), 5
    past = key_values.read(model.module, ids[:, :seen])
    before, after = (key_values.names(prefix, len(past)) for prefix in (key_values.PAST, key_values.PRESENT))
    places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    example = {"input_ids": ids[:, seen:], key_values.MASK: torch.ones_like(ids), "position_ids": places[:, seen:]}
    free = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "position_ids", output)}
    free |= {name: key_values.axes(name) for name in (key_values.MASK, *before, *after)}
    return Function(OfTokens(module).eval(), {**example, **dict(zip(before, past, strict=True))}, (output, *after), free)


def write_preparation(model: Model, place: Path) -> None:
    """Write what a program needs to make inputs: tokenizer and configurations, or preprocessing.json."""
    if isinstance(model, LanguageModel | EncoderModel):
        model.tokenizer.save_pretrained(place)
        model.module.config.save_pretrained(place)
        if getattr(model.module, "generation_config", None) is not None:
            model.module.generation_config.save_pretrained(place)
        return
    assert isinstance(model, ImageModel)
    (place / "preprocessing.json").write_text(json.dumps(asdict(model.preprocessing), indent=2), encoding="utf-8")
