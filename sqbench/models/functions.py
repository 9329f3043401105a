"""A model as a function of one tensor, which other programs can trace, and the same model with its body computed elsewhere."""

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.experts import has_experts
from sqbench.models.folding import share
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Stored, stored_bytes

Function = Callable[[Tensor], Tensor]


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


def untraceable(model: Model) -> str | None:
    """The reason why a model is no function of one tensor. None if it is one."""
    if isinstance(model, ImageModel):
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


def whole(model: Model) -> nn.Module:
    """A module from inputs to `model.forward(inputs)`. It shares the model's tensors, and may be changed."""
    if isinstance(model, LanguageModel):
        return OfTokens(share(model.module)).eval()
    assert isinstance(model, ImageModel)
    module = share(model.module)
    return module if model.head is None else nn.Sequential(module, model.head).eval()


def without_head(model: Model) -> nn.Module:
    """A module from inputs to `model.body(inputs)`. It shares the model's tensors, and may be changed.

    A language model whose logits are not its output embedding alone keeps its head.
    """
    if not isinstance(model, LanguageModel):
        return share(model.module)
    module: Any = share(model.module)
    if model.head is not None:
        module.set_submodule(model.tables()["head"], nn.Identity())
    return OfTokens(module).eval()


def name_in_model(function: nn.Module, path: str) -> str:
    """The name in the model of what has this path in a function of it without its head."""
    return path.removeprefix("module.") if isinstance(function, OfTokens) else path


def computed(model: Model, run: Function, *, headless: bool) -> Model:
    """A model whose numbers are those of a function.

    Args:
        run: computes what `whole(model)` computes, or what `without_head(model)` does if it is `headless`.
    """
    if isinstance(model, LanguageModel):
        head = model.head if headless else None
        return replace(model, module=ComputedLanguage(run, model, head))
    assert isinstance(model, ImageModel)
    module = Computed(run, stored_bytes(model.module))
    return replace(model, module=module, head=model.head if headless else None)


class Computed(Stored):
    """Takes the place of a module that another program computes. It tells its dtype, its device and the bytes of its weights.

    Attributes:
        weight: float32 on the CPU, without elements.
    """

    def __init__(self, run: Function, size: int) -> None:
        """`size` is the bytes of the weights as stored."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.run = run
        self._stored_bytes = size

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(inputs)

    def stored_bytes(self) -> int:
        """Bytes of the weights as stored, besides those of submodules."""
        return self._stored_bytes


class ComputedLanguage(Computed):
    """Takes the place of a Hugging Face causal LM, for prompts. It has no KV cache.

    Attributes:
        head: turns what is computed into logits. None if logits are computed.
    """

    def __init__(self, run: Function, model: LanguageModel, head: Any) -> None:
        super().__init__(run, model.stored_bytes - (0 if head is None else stored_bytes(head)))
        self.config = model.module.config
        self.head = head
        self.shape = model.module.get_input_embeddings().weight.shape

    def get_input_embeddings(self) -> Any:
        """The shape of the token embedding, as a tensor without memory."""
        return SimpleNamespace(weight=torch.empty(self.shape, device="meta"))

    def get_output_embeddings(self) -> Any:
        """The head, if it is not computed with the rest."""
        return self.head

    def forward(self, input_ids: Tensor, *, use_cache: bool, logits_to_keep: int = 0) -> Any:  # type: ignore[override]
        assert not use_cache, "prompts alone"
        outputs = self.run(input_ids)[:, -logits_to_keep:]  # 0 keeps all
        return SimpleNamespace(logits=outputs if self.head is None else self.head(outputs))


def write_preparation(model: Model, place: Path) -> None:
    """Write what a program needs to make inputs: tokenizer and configurations, or preprocessing.json."""
    if isinstance(model, LanguageModel):
        model.tokenizer.save_pretrained(place)
        model.module.config.save_pretrained(place)
        if getattr(model.module, "generation_config", None) is not None:
            model.module.generation_config.save_pretrained(place)
        return
    assert isinstance(model, ImageModel)
    (place / "preprocessing.json").write_text(json.dumps(asdict(model.preprocessing), indent=2), encoding="utf-8")
