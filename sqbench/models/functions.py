"""A model as a function of named tensors, which other programs can trace."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.encoder import VECTORS, EncoderModel
from sqbench.models.experts import has_experts
from sqbench.models.folding import share
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.models.pooling import Pooling
from sqbench.models.tracing import first_tensor


class OfTokens(nn.Module):
    """A language model as a function of token ids [batch, tokens]. It makes the mask and the positions itself.

    Code of transformers that finds a mask has operations that converters do not know.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        later = places.unsqueeze(0) > places.unsqueeze(1)
        mask = later.float().mul(torch.finfo(torch.float32).min)[None, None]
        logits: Tensor = self.module(input_ids=ids, attention_mask=mask, position_ids=places.unsqueeze(0), use_cache=False).logits
        return logits


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
    if "position_ids" not in inspect.signature(model.module.forward).parameters:
        return f"{type(model.module).__name__} takes no position_ids"
    if has_experts(model.module):
        return f"{type(model.module).__name__} routes tokens to experts, so its operations depend on its input"
    config = model.module.config
    if (kinds := set(getattr(config, "layer_types", None) or ())) - {"full_attention"}:
        return f"{type(model.module).__name__} has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{type(model.module).__name__} attends to a sliding window"
    return None


def named_inputs(model: Model, inputs: Tensor) -> dict[str, Tensor]:
    """The inputs of a model's functions by their names, in order."""
    return model.named(inputs) if isinstance(model, EncoderModel) else {"inputs": inputs}


def names_of(model: EncoderModel) -> tuple[str, ...]:
    """The names of what the functions of an encoder read, in order."""
    return (*model.fields, "attention_mask")


def whole(model: Model) -> nn.Module:
    """A module from `named_inputs` to `model.forward(inputs)`. It shares the model's tensors, and may be changed."""
    if isinstance(model, LanguageModel):
        return OfTokens(share(model.module)).eval()
    if isinstance(model, EncoderModel):
        pooling = model.pooling if model.task in VECTORS else None
        return OfTexts(share(model.module), names_of(model), pooling, model.head).eval()
    assert isinstance(model, ImageModel)
    module = share(model.module)
    return module if model.head is None else nn.Sequential(module, model.head).eval()


def without_head(model: Model) -> nn.Module:
    """A module from `named_inputs` to `model.body(inputs)`. It shares the model's tensors, and may be changed.

    A language model whose logits are not its output embedding alone keeps its head.
    """
    if isinstance(model, EncoderModel):
        return OfTexts(share(model.module), names_of(model)).eval()
    if not isinstance(model, LanguageModel):
        return share(model.module)
    module: Any = share(model.module)
    if model.head is not None:
        module.set_submodule(model.tables()["head"], nn.Identity())
    return OfTokens(module).eval()


def name_in_model(function: nn.Module, path: str) -> str:
    """The name in the model of what has this path in a function of it without its head."""
    return path.removeprefix("module.") if isinstance(function, OfTokens | OfTexts) else path


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
