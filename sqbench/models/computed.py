"""A model whose body another program computes."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.encoder import EncoderModel
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Stored, stored_bytes

Run = Callable[..., Sequence[Tensor]]  # from the inputs of a `functions.Function` to its outputs, in order


def computed(model: Model, run: Run, *, headless: bool, head: nn.Module | None = None) -> Model:
    """A model whose numbers are those of a function.

    Args:
        run: computes what `whole(model)` computes, or what `without_head(model)` does if it is `headless`. It may write over its
            outputs in the next call.
        head: takes the place of the head of a language model if it is `headless`. None takes the model's own.
    """
    if isinstance(model, LanguageModel):
        from sqbench.models.computed_language import ComputedLanguage  # importing transformers takes seconds

        return replace(model, module=ComputedLanguage(run, model, (head or model.head) if headless else None))
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

    def __init__(self, run: Run, size: int) -> None:
        """`size` is the bytes of the weights as stored."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.run = run
        self._stored_bytes = size

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        (outputs,) = self.run(*inputs, *named.values())
        return outputs.clone()

    def stored_bytes(self) -> int:
        """Bytes of the weights as stored, besides those of submodules."""
        return self._stored_bytes


class ComputedRows(Computed):
    """Takes the place of a layer. Another program computes it for rows [rows, width]."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Outputs [..., further width] of x [..., width]."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
