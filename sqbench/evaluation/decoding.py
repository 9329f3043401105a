"""Greedy generation at batch 1, the same for every side of a comparison: read a prompt once, then write token by token."""

import inspect
from typing import Any

import torch
from torch import Tensor


class Decoder:
    """One generation: `prefill` first, then `step` for every further token.

    Attributes:
        token: [1, 1] int64, the one written last.
    """

    def __init__(self, module: Any) -> None:
        """`module` is a Hugging Face causal LM."""
        from transformers import DynamicCache

        self.module = module
        self.cache = DynamicCache(config=module.config)
        # Logits of a whole prompt are as much work as many layers, and nobody reads them.
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}
        self.token = torch.empty(1, 0, dtype=torch.long)

    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt [1, tokens] and write the first token after it, [1, 1]."""
        assert ids.ndim == 2
        assert len(ids) == 1
        logits = self.module(input_ids=ids, past_key_values=self.cache, use_cache=True, **self.options).logits
        self.token = logits[:, -1:].argmax(-1)
        return self.token

    def step(self) -> Tensor:
        """Write one more token, [1, 1]."""
        return self.prefill(self.token)


@torch.no_grad()
def greedy(module: Any, ids: Tensor, count: int) -> Tensor:
    """The `count` tokens [count] that are most likely after a prompt [1, tokens], one after the other; no stop token stops it."""
    decoder = Decoder(module)
    written = [decoder.prefill(ids), *(decoder.step() for _ in range(count - 1))]
    return torch.cat(written, dim=1)[0]
