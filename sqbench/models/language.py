"""A causal language model as the rest of sqbench sees it: one module, its tokenizer, and where its head begins."""

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


@dataclass(frozen=True)
class LanguageModel(Model):
    """A Hugging Face causal LM: `module(input_ids=..., use_cache=False).logits` are its predictions.

    Attributes:
        tokenizer: of the same model.
    """

    kind: ClassVar[str] = "text"

    tokenizer: Any = None

    def example(self) -> Tensor:
        """A small fixed batch of token ids [2, 12]: enough to trace and to prove folds on."""
        vocabulary = self.module.config.vocab_size
        ids = torch.arange(1, 25, dtype=torch.long) * 7919 % vocabulary
        return ids.view(2, 12).to(self.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of token ids [batch, tokens]."""
        return self.module(input_ids=ids.to(self.device), use_cache=False).logits

    def body(self, ids: Tensor) -> Tensor:
        """What the head reads, [batch, tokens, width]; all quantizable layers have run then."""
        return self.module.get_decoder()(input_ids=ids.to(self.device), use_cache=False).last_hidden_state

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor] | None:
        """The function from `body` to `forward`, if it is the output embedding alone (proven on the example); else None.

        Some models scale or cap their logits after it: for those the whole forward pass is the only honest way.
        """
        head = self.module.get_output_embeddings()
        if head is None or not hasattr(self.module, "get_decoder"):
            return None
        with torch.no_grad():
            whole, hidden = self.of_example()
            split = head(hidden)
        return head if whole.shape == split.shape and torch.equal(whole, split) else None

    def of_example(self) -> tuple[Tensor, Tensor]:
        """Logits of the example, and what the head reads of it."""
        ids = self.example()
        return self.forward(ids), self.body(ids)

    def pinned_layers(self) -> set[str]:
        """Names of the layers that quantization leaves alone: the output embedding."""
        head = self.module.get_output_embeddings()
        return {name for name, module in self.module.named_modules() if module is head}


@contextmanager
def readable(name: str, folder: Path) -> Iterator[None]:
    """What transformers raises inside the block, said of `model.name`."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.name={name}: {folder} is no causal language model that transformers can load ({error})") from error


def load_language_model(
    folder: Path, device: torch.device, *, name: str, fingerprint: str, dtype: str, trust_remote_code: bool, keep: tuple[str, ...]
) -> LanguageModel:
    """Load a causal LM and its tokenizer from a local folder (safetensors only).

    Raises:
        UserError: the folder holds no causal language model that transformers can build.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with readable(name, folder):
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    module.requires_grad_(False)
    return LanguageModel(module.eval().to(device), name, fingerprint, keep, tokenizer=tokenizer)
