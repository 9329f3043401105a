"""Greedy decoding and beam search, the same for every side of a comparison: read a prompt once, then write token by token.

`generate` of transformers would do what the model's own generation config asks for as well: repetition penalties, stop tokens.
"""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


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
        self._recorded: torch.cuda.CUDAGraph | None = None

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
        if self._recorded is None:
            return self.prefill(self.token)
        self._recorded.replay()
        return self.token.clone()

    @torch.no_grad()
    def record(self, room: int) -> bool:
        """After the prompt, take one step and make it a CUDA graph, which up to `room` later steps replay.

        What a step takes is then the work of the GPU, not that of Python, which starts hundreds of kernels of microseconds each.

        Returns:
            Whether it did. On a CPU, for layers that keep only part of the past, and where a step waits for the GPU to decide what
            comes next, steps are taken as before.
        """
        if self.token.device.type != "cuda" or not self.keep_in_place(room + 1):
            return False
        self.step()  # what is compiled or chosen at a first call cannot be recorded
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
        """Move the past to where every step finds and extends it, by `room` tokens at most; whether the model can do so."""
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
