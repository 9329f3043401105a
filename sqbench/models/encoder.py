"""An encoder for the rest of sqbench: one module in which every token sees the whole text, its tokenizer, and its task."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.folder import context_of
from sqbench.models.pooling import MEAN, Pooling
from sqbench.models.tracing import first_tensor

VECTORS = ("similarity", "features")  # tasks in which a text becomes a vector
Texts = tuple[str, ...]  # one text, or two that the model reads together


@dataclass(frozen=True)
class EncoderModel(Model):
    """A Hugging Face encoder: `module(input_ids=..., attention_mask=...)` gives hidden states or logits.

    A batch holds texts of one length. None of it is padding. So padding enters no range, no error and no Gram matrix, and every
    mask is full. A text is one tensor [fields, tokens]: its token ids, and its token types where the model has them.

    Attributes:
        tokenizer: the tokenizer of the same model.
        fields: names of the tokenizer's outputs that the module reads, besides the mask. The token ids are the first.
        task: `similarity` (a vector for each text), `features` (vectors for a fitted head), `classification`, `regression` or
            `fill_mask`.
        pooling: how hidden states become a vector, and how texts are read.
        head: a fitted classifier on the vectors, which stays in float; None means the module's own output.
        head_fingerprint: sha256 of the data and the method that the head was fitted with.
    """

    kind: ClassVar[str] = "sentences"

    tokenizer: Any = None
    fields: tuple[str, ...] = ("input_ids",)
    task: str = "similarity"
    pooling: Pooling = MEAN
    head: nn.Module | None = None
    head_fingerprint: str = ""

    @property
    def prediction_fingerprint(self) -> str:
        """The sha256 of the weights, followed by that of the head."""
        return f"{self.fingerprint}{self.head_fingerprint}"

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    @cached_property
    def longest(self) -> int | None:
        """The most tokens of a text, special ones among them. None if nothing limits them."""
        context = context_of(self.module.config.to_dict())
        said = (self.pooling.tokens, self.tokenizer.model_max_length, context and context - _skipped(self.module))
        return min((count for count in said if count is not None and count < 10**9), default=None)

    def encode(self, texts: Sequence[Texts]) -> tuple[list[Tensor], int]:
        """The inputs [fields, tokens] of texts, and how many texts were cut to the longest that the model takes."""
        inputs = [self._encoded(text, None) for text in texts]
        long = [number for number, one in enumerate(inputs) if self.longest is not None and one.shape[1] > self.longest]
        for number in long:
            inputs[number] = self._encoded(texts[number], self.longest)
        return inputs, len(long)

    def _encoded(self, text: Texts, longest: int | None) -> Tensor:
        parts = [part.lower() for part in text] if self.pooling.lower else text
        found = self.tokenizer(*parts, truncation=longest is not None, max_length=longest, verbose=False)
        return torch.tensor([found[name] for name in self.fields], dtype=torch.long)

    def like(self, shape: Sequence[int]) -> Tensor:
        """Inputs [texts, fields, tokens] of any content for a shape (texts, tokens)."""
        ids = torch.arange(1, shape[0] * shape[1] + 1, dtype=torch.long) * 7919 % self.vocabulary
        inputs = torch.zeros(shape[0], len(self.fields), shape[1], dtype=torch.long)
        inputs[:, 0] = ids.view(*shape)
        return inputs.to(self.device)

    def example(self) -> Tensor:
        """A small fixed batch [2, fields, 12]. It is enough to trace and to prove folds on."""
        return self.like((2, 12))

    def inputs_like(self, hidden: Tensor) -> Tensor:
        """See `Model.inputs_like`."""
        return self.like((1, hidden.shape[1]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Vectors [texts, width], the logits [texts, classes] of a fitted or an own head, or logits [texts, tokens, vocabulary]."""
        outputs = self.body(inputs)
        if self.task in VECTORS:
            outputs = self.pooling(outputs)
        return outputs if self.head is None else self.head(outputs)

    def body(self, inputs: Tensor) -> Tensor:
        """The module's own output for inputs [texts, fields, tokens]: hidden states or logits."""
        return first_tensor(self.module(**self.named(inputs)))

    def named(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the module reads of inputs [texts, fields, tokens], and the full mask: [texts, tokens] each."""
        ids = inputs.to(self.device)
        fields = {name: ids[:, number] for number, name in enumerate(self.fields)}
        return {**fields, "attention_mask": torch.ones_like(ids[:, 0])}

    def tables(self) -> dict[str, str]:
        """See `Model.tables`."""
        found = {"embedding": self.module.get_input_embeddings(), "head": _output_embedding(self.module)}
        names = {id(module): name for name, module in self.module.named_modules()}
        return {slot: names[id(module)] for slot, module in found.items() if id(module) in names}

    def pinned_layers(self) -> set[str]:
        """Names of the layers that quantization leaves alone: the output embedding of the task `fill_mask`."""
        head = _output_embedding(self.module)
        return {name for name, module in self.module.named_modules() if module is head}


def _output_embedding(module: Any) -> nn.Module | None:
    found: nn.Module | None = module.get_output_embeddings()
    return found


def _skipped(module: nn.Module) -> int:
    """How many position embeddings no token uses: RoBERTa counts its positions from behind that of the padding."""
    tables = (part for name, part in module.named_modules() if name.endswith("position_embeddings"))
    return next((part.padding_idx + 1 for part in tables if getattr(part, "padding_idx", None) is not None), 0)
