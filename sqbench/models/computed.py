"""A model whose body another program computes."""

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.encoder import EncoderModel
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Stored, stored_bytes

Function = Callable[..., Tensor]  # of the inputs of `functions.named_inputs`, in order


def computed(model: Model, run: Function, *, headless: bool) -> Model:
    """A model whose numbers are those of a function.

    Args:
        run: computes what `whole(model)` computes, or what `without_head(model)` does if it is `headless`.
    """
    if isinstance(model, LanguageModel):
        head = model.head if headless else None
        return replace(model, module=ComputedLanguage(run, model, head))
    module = Computed(run, stored_bytes(model.module))
    if isinstance(model, EncoderModel):
        return replace(model, module=module) if headless else _predicting(model, module)
    assert isinstance(model, ImageModel)
    return replace(model, module=module, head=model.head if headless else None)


class Predicting(EncoderModel):
    """An encoder whose module makes predictions, not hidden states."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See `EncoderModel.forward`."""
        return self.body(inputs)


def _predicting(model: EncoderModel, module: nn.Module) -> Predicting:
    kept = {field.name: getattr(model, field.name) for field in fields(model)}
    return Predicting(**{**kept, "module": module, "head": None})


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

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.run(*inputs, *named.values())

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
