"""Proof of a GGUF file by llama.cpp, or by transformers where llama-cpp-python is not installed."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.gguf_parts import gguf_in
from sqbench.data import Examples
from sqbench.errors import UserError
from sqbench.exports.hugging_face import loaded
from sqbench.exports.proof import Proof, compared
from sqbench.models.base import Model
from sqbench.models.language import LanguageModel


def prove(simulated: Model, folder: Path, examples: Examples) -> Proof:
    """Load a folder's file with another program, and compare it on all evaluation examples.

    Raises:
        UserError: the other program cannot load it.
    """
    assert isinstance(simulated, LanguageModel)
    file = gguf_in(folder, f"out={folder}")
    assert file is not None
    if find_spec("llama_cpp") is None:
        if simulated.module.config.rope_parameters["rope_type"] != "default":
            raise UserError(
                f"out={folder}: is written, and transformers reads no scaled positions from GGUF files; install"
                " llama-cpp-python, which does, or set verify=false"
            )
        theirs: LanguageModel = by_transformers(file, simulated)
        program = f"transformers {version('transformers')} with gguf {version('gguf')} (llama-cpp-python is not installed)"
        return compared(simulated, theirs, examples, program=program, dtype=str(theirs.module.dtype).removeprefix("torch."))
    context = max(ids.shape[-1] for ids in examples.inputs())
    program = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
    return compared(
        simulated, LlamaCpp.of(file, simulated, context), examples, program=program, dtype="blocks, with inputs rounded to 8 bits"
    )


def by_transformers(file: Path, like: LanguageModel) -> LanguageModel:
    """A file as transformers loads it by itself."""
    return loaded(file.parent, next(like.module.parameters()).dtype, like, gguf_file=file.name)


@dataclass(frozen=True)
class LlamaCpp(LanguageModel):
    """A file as llama.cpp computes it on a CPU. Its matrix products round their inputs to 8 bits.

    Attributes:
        runtime: a `llama_cpp.Llama` that keeps the logits of all tokens.
    """

    runtime: Any = None

    @classmethod
    def of(cls, file: Path, like: LanguageModel, context: int) -> "LlamaCpp":
        """Load a file.

        Args:
            like: the same model in torch, which knows its sizes and its tokenizer.
            context: most tokens of an input.

        Raises:
            UserError: llama.cpp cannot load it.
        """
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        sizes = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads}
        try:
            runtime = Llama(str(file), **sizes, logits_all=True, verbose=False)
        except ValueError as error:
            raise UserError(
                f"out={file.parent}: is written, and llama.cpp cannot load it ({error}); verify=false skips this"
            ) from error
        return cls(like.module, like.name, f"{like.fingerprint}-llama.cpp", tokenizer=like.tokenizer, runtime=runtime)

    @cached_property
    def head(self) -> None:
        """llama.cpp gives logits alone."""

    def forward(self, ids: Tensor) -> Tensor:
        """See `LanguageModel.forward`."""
        return torch.stack([self._logits(row) for row in ids])

    def _logits(self, ids: Tensor) -> Tensor:
        self.runtime.reset()
        self.runtime.eval(ids.tolist())
        return torch.tensor(self.runtime.scores[: len(ids)])
