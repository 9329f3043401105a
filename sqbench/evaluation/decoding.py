"""Greedy decoding and beam search, the same for both sides of a comparison. The prompt is read once, then tokens follow one by one.

`generate` of transformers is not used. It would also apply the model's own generation config: repetition penalties, stop tokens.
"""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

from sqbench.errors import UserError
from sqbench.models import key_values

log = logging.getLogger(__name__)


def check_context(prompt: int, decode: int, context: int | None, model: str) -> None:
    """Raise UserError if a prompt and what is written after it, in tokens, are longer than the context of a model."""
    if context is not None and prompt + decode > context:
        raise UserError(f"eval.prompt={prompt} eval.decode={decode}: {model} takes at most {context} tokens; use fewer")


class Decoder:
    """One generation of one text or of several texts of equal length. Call `prefill` first, then `step` for each further token.

    Attributes:
        token: [texts, 1] int64, the last token written.
    """

    def __init__(self, module: Any) -> None:
        """`module` is a Hugging Face causal LM."""
        self.module = module
        self.cache = key_values.empty_cache(module)
        self.options: dict[str, Any] = key_values.as_argument(module, self.cache)
        takes = inspect.signature(module.forward).parameters
        if "logits_to_keep" in takes:  # logits of a whole prompt cost as much as many layers, and nothing reads them
            self.options["logits_to_keep"] = 1
        self.token = torch.empty(1, 0, dtype=torch.long)
        self._recorded: torch.cuda.CUDAGraph | None = None

    def read(self, ids: Tensor) -> Tensor:
        """Read further tokens [texts, tokens]. The result is the logits [texts, vocabulary] of the next token."""
        assert ids.ndim == 2
        return self.module(input_ids=ids, use_cache=True, **self.options).logits[:, -1]

    def prefill(self, ids: Tensor) -> Tensor:
        """Read prompts [texts, tokens] and write the first token after each, [texts, 1]."""
        self.token = self.read(ids).argmax(-1, keepdim=True)
        return self.token

    def step(self) -> Tensor:
        """Write one more token, [texts, 1]."""
        if self._recorded is None:
            return self.prefill(self.token)
        self._recorded.replay()
        return self.token.clone()

    @torch.no_grad()
    def record(self, room: int) -> bool:
        """Take one step after the prompt and record it as a CUDA graph. Up to `room` later steps replay the graph.

        A replayed step takes only the GPU's time. Otherwise Python starts hundreds of kernels of microseconds each.

        Returns:
            Whether the step was recorded. It is not recorded on a CPU, for layers that keep only part of the past, or if a step
            waits for the GPU to decide what comes next. Later steps then run as before.
        """
        if self.token.device.type != "cuda" or not self.keep_in_place(room + 1):
            return False
        self.step()  # the first call may compile or choose kernels, which cannot be recorded
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.token.copy_(self.read(self.token).argmax(-1, keepdim=True))
        except RuntimeError as error:
            log.warning("decoding is timed step by step, with what Python takes for each: %s", str(error).splitlines()[0])
            return False
        self._recorded = graph
        return True

    def keep_in_place(self, room: int) -> bool:
        """Move the KV cache to fixed memory with room for `room` more tokens. Return whether the model supports it."""
        from transformers.cache_utils import DynamicLayer, StaticCache, StaticLayer

        past = self.cache.layers
        static = StaticCache(config=self.module.config, max_cache_len=self.cache.get_seq_length() + room)
        kinds = {type(layer) for layer in past}, {type(layer) for layer in static.layers}
        if kinds != ({DynamicLayer}, {StaticLayer}):
            return False
        for number, layer in enumerate(past):
            static.update(layer.keys, layer.values, number)
        self.options[next(name for name, value in self.options.items() if value is self.cache)] = static
        self.cache = static
        return True


@torch.no_grad()
def first_token(module: Any, ids: Tensor) -> Tensor:
    """The most likely token [texts, 1] after prompts [texts, tokens]. Nothing is kept for further tokens."""
    takes = inspect.signature(module.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    last: Tensor = module(input_ids=ids, use_cache=False, **options).logits[:, -1]
    return last.argmax(-1, keepdim=True)


@torch.no_grad()
def greedy(module: Any, ids: Tensor, count: int) -> Tensor:
    """The `count` tokens [count] after a prompt [1, tokens], each the most likely next token. No stop token ends the text."""
    assert len(ids) == 1
    decoder = Decoder(module)
    written = [decoder.prefill(ids), *(decoder.step() for _ in range(count - 1))]
    return torch.cat(written, dim=1)[0]


@torch.no_grad()
def beam_search(module: Any, ids: Tensor, count: int, beams: int) -> tuple[Tensor, Tensor]:
    """Likely texts [prompts, count] after prompts [prompts, tokens], and the log-likelihood [prompts] of each.

    After each token the `beams` most likely beginnings of a text are kept. One beam is greedy decoding. No stop token ends a text.
    All texts are therefore equally long, and no length penalty is needed.
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
