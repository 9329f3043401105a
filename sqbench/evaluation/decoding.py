"""Greedy decoding and beam search, the same for every side of a comparison: read a prompt once, then write token by token.

`generate` of transformers would do what the model's own generation config asks for as well: repetition penalties, stop tokens.
"""

import inspect
from typing import Any

import torch
from torch import Tensor


class Decoder:
    """One generation, of one text or several of equal length: `prefill` first, then `step` for every further token.

    Attributes:
        token: [texts, 1] int64, the one written last.
    """

    def __init__(self, module: Any) -> None:
        """`module` is a Hugging Face causal LM."""
        from transformers import DynamicCache

        self.module = module
        self.cache = DynamicCache(config=module.config)
        takes = inspect.signature(module.forward).parameters
        self.options: dict[str, Any] = {"cache" if "cache" in takes else "past_key_values": self.cache}  # its name before 5.24
        if "logits_to_keep" in takes:  # logits of a whole prompt are as much work as many layers, and nobody reads them
            self.options["logits_to_keep"] = 1
        self.token = torch.empty(1, 0, dtype=torch.long)

    def read(self, ids: Tensor) -> Tensor:
        """Logits [texts, vocabulary] of what comes after these further tokens [texts, tokens]."""
        assert ids.ndim == 2
        return self.module(input_ids=ids, use_cache=True, **self.options).logits[:, -1]

    def prefill(self, ids: Tensor) -> Tensor:
        """Read prompts [texts, tokens] and write the first token after each, [texts, 1]."""
        self.token = self.read(ids).argmax(-1, keepdim=True)
        return self.token

    def step(self) -> Tensor:
        """Write one more token, [texts, 1]."""
        return self.prefill(self.token)


@torch.no_grad()
def greedy(module: Any, ids: Tensor, count: int) -> Tensor:
    """The `count` tokens [count] that are most likely after a prompt [1, tokens], one after the other; no stop token stops it."""
    assert len(ids) == 1
    decoder = Decoder(module)
    written = [decoder.prefill(ids), *(decoder.step() for _ in range(count - 1))]
    return torch.cat(written, dim=1)[0]


@torch.no_grad()
def beam_search(module: Any, ids: Tensor, count: int, beams: int) -> tuple[Tensor, Tensor]:
    """Likely texts [prompts, count] after prompts [prompts, tokens], and the log-likelihood [prompts] of each.

    Of the beginnings of every text the `beams` most likely are kept, token by token; one beam is greedy decoding. No stop token
    stops it: all texts are equally long, and no length has to be made up for.
    """
    decoder = Decoder(module)
    scores, tokens = decoder.read(ids).float().log_softmax(-1).topk(beams)
    texts = tokens.unsqueeze(2)  # [prompts, beams, written]
    decoder.cache.batch_repeat_interleave(beams)
    start = beams * torch.arange(len(ids), device=ids.device).unsqueeze(1)  # where the beams of a prompt begin
    for _ in range(count - 1):
        further = decoder.read(texts[:, :, -1].reshape(-1, 1)).float().log_softmax(-1)
        every = (scores.reshape(-1, 1) + further).view(len(ids), -1)
        scores, best = every.topk(beams)
        parent, tokens = best // further.shape[1], best % further.shape[1]
        decoder.cache.reorder_cache((start + parent).flatten())
        texts = torch.cat([texts.gather(1, parent.unsqueeze(2).expand_as(texts)), tokens.unsqueeze(2)], dim=2)
    return texts[:, 0], scores[:, 0]
