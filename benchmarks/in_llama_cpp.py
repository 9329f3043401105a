"""llama.cpp as a side of benchmarks.runtimes: the codes of a quantized model in a GGUF file, computed on the CPU."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Work
from sqbench.checkpoints.blocks import kind_of
from sqbench.checkpoints.gguf_parts import gguf_in
from sqbench.exports.llama_cpp import LlamaCpp
from sqbench.exports.targets import save
from sqbench.models import Model
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import QuantLayer

NAME = "llama.cpp"


def fits(quantized: Model) -> bool:
    """Whether llama.cpp is installed and has types for all layers."""
    layers = [part for part in quantized.module.modules() if isinstance(part, QuantLayer)]
    typed = all(one.format is not None and one.activation is None and kind_of(one.format) is not None for one in layers)
    return find_spec("llama_cpp") is not None and typed


class InLlamaCpp:
    """A quantized model in llama.cpp."""

    def __init__(self, quantized: LanguageModel, folder: str, tokens: int) -> None:
        """`folder` gets the file and must stay. `tokens` are the most that are read and written."""
        from llama_cpp import Llama

        save(quantized, Path(folder) / "gguf", format="gguf")
        file = gguf_in(Path(folder) / "gguf", NAME)
        assert file is not None
        self.file, self.like = file, quantized
        threads = torch.get_num_threads()
        sizes = {"n_ctx": tokens, "n_batch": tokens, "n_threads": threads, "n_threads_batch": threads}
        self.runtime = Llama(str(file), **sizes, verbose=False)

    def next(self, ids: list[int]) -> int:
        """The most likely token after further tokens. Only its logits are computed."""
        self.runtime.eval(ids)
        logits = self.runtime._ctx.get_logits_ith(-1)
        return int(np.ctypeslib.as_array(logits, (self.runtime.n_vocab(),)).argmax())

    def reading(self, ids: Tensor) -> Work:
        """Work that reads a prompt [1, tokens]."""

        def work() -> int:
            self.runtime.reset()
            return self.next(ids[0].tolist())

        return work

    def writing(self, ids: Tensor, count: int) -> Work:
        """Work that writes `count` tokens greedily after a prompt [1, tokens], which is in the KV cache."""
        first = int(self.reading(ids)())  # type: ignore[call-overload]

        def work() -> list[int]:
            self.runtime.n_tokens = ids.shape[1]  # the cache forgets what comes later
            written = [first]
            for _ in range(count):
                written.append(self.next(written[-1:]))
            return written

        return work

    def logits(self, ids: Tensor) -> Tensor:
        """The logits [1, tokens, vocabulary] of prompts."""
        return LlamaCpp.of(self.file, self.like, ids.shape[1]).forward(ids)
