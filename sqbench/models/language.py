"""A causal language model for the rest of sqbench: one module, its tokenizer, and the place where its head begins."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class LanguageModel(Model):
    """A Hugging Face causal LM: `module(input_ids=..., use_cache=False).logits` are its predictions.

    Attributes:
        tokenizer: the tokenizer of the same model.
    """

    kind: ClassVar[str] = "text"

    tokenizer: Any = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    @property
    def width(self) -> int:
        """Length of a token's embedding vector."""
        return int(self.module.get_input_embeddings().weight.shape[1])

    def check_tokens(self, ids: Tensor) -> None:
        """Raise UserError for token ids of the tokenizer that have no embedding in the model. Only ids on a CPU are checked."""
        if ids.device.type == "cpu" and ids.numel() and (largest := int(ids.max())) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"model.name={self.name}: its tokenizer makes {token!r} the token {largest}, and the model has embeddings for 0 to"
                f" {self.vocabulary - 1}; use the tokenizer that it was trained with, or a text without this token"
            )

    def example(self) -> Tensor:
        """A small fixed batch of token ids [2, 12]. It is enough to trace and to prove folds on."""
        ids = torch.arange(1, 25, dtype=torch.long) * 7919 % self.vocabulary
        return ids.view(2, 12).to(self.device)

    def inputs_like(self, hidden: Tensor) -> Tensor:
        """Token ids [1, tokens] for hidden states [batch, tokens, width]."""
        return torch.zeros(1, hidden.shape[1], dtype=torch.long)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of token ids [batch, tokens]."""
        self.check_tokens(ids)
        return self.module(input_ids=ids.to(self.device), use_cache=False).logits

    def body(self, ids: Tensor) -> Tensor:
        """The tensor that the output embedding reads: [batch, tokens, width]. The logits if the model calls no output embedding.

        The forward pass ends where the output embedding begins. All other layers have run then, also those of a larger head.
        """
        head = self.module.get_output_embeddings()
        handle = None if head is None else head.register_forward_pre_hook(_stop)
        try:
            return LanguageModel.forward(self, ids)
        except _Reached as reached:
            return reached.hidden
        finally:
            if handle is not None:
                handle.remove()

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor] | None:
        """The function from `body` to `forward` if it is the output embedding alone (proven on the example), else None.

        Some models scale or cap their logits after the output embedding. They need the whole forward pass.
        """
        head = self.module.get_output_embeddings()
        with torch.no_grad():
            whole, hidden = self.of_example()
            if head is None or torch.equal(whole, hidden):
                return None
            split = head(hidden)
        return head if whole.shape == split.shape and torch.equal(whole, split) else None

    def of_example(self) -> tuple[Tensor, Tensor]:
        """Logits of the example, and the tensor that the head reads."""
        ids = self.example()
        return self.forward(ids), self.body(ids)

    def tables(self) -> dict[str, str]:
        """See `Model.tables`."""
        found = {"embedding": self.module.get_input_embeddings(), "head": self.module.get_output_embeddings()}
        names = {id(module): name for name, module in self.module.named_modules()}
        return {slot: names[id(module)] for slot, module in found.items() if id(module) in names}

    def pinned_layers(self) -> set[str]:
        """Names of the layers that quantization leaves alone: the output embedding."""
        head = self.module.get_output_embeddings()
        return {name for name, module in self.module.named_modules() if module is head}


class _Reached(Exception):
    """Ends a forward pass at the output embedding."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _stop(module: Any, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])


@contextmanager
def readable(name: str, folder: Path, what: str = "causal language model") -> Iterator[None]:
    """Turn an error of transformers inside the `with` statement into a UserError about `model.name`, with its first line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"model.name={name}: {folder} is no {what} that transformers can load ({textwrap.shorten(reason, 300)})"
        ) from error


def load_language_model(
    folder: Path, device: torch.device, *, name: str, fingerprint: str, dtype: str, trust_remote_code: bool, keep: tuple[str, ...]
) -> LanguageModel:
    """Load a causal LM and its tokenizer from a local folder (safetensors only).

    Raises:
        UserError: the folder holds no causal language model that transformers can build, or other tensors than the model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    precision: torch.dtype = getattr(torch, dtype)
    with readable(name, folder):
        config = AutoConfig.from_pretrained(folder, **options)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, dtype=precision, trust_remote_code=trust_remote_code)
        Checkpoint.of(folder, empty, precision, f"model.name={name}")
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    module.requires_grad_(False)
    return LanguageModel(module.eval().to(device), name, fingerprint, keep, tokenizer=tokenizer)
