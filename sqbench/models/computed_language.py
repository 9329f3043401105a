"""A language model whose numbers another program computes, also where it writes text."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from sqbench.models import key_values
from sqbench.models.computed import Computed, Run
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import stored_bytes


class ComputedLanguage(Computed, GenerationMixin):
    """Takes the place of a Hugging Face causal LM.

    Attributes:
        head: turns what is computed into logits. None if logits are computed.
        past: the tensors of a KV cache that has read nothing.
    """

    main_input_name = "input_ids"
    device = torch.device("cpu")
    dtype = torch.float32
    _is_stateful = False  # transformers asks whether a prompt may be read again

    def __init__(self, run: Run, model: LanguageModel, head: Any) -> None:
        super().__init__(run, model.stored_bytes - (0 if head is None else stored_bytes(head)))
        self.config, self.generation_config = model.module.config, getattr(model.module, "generation_config", None)
        self.head = head
        self.past = key_values.nothing(key_values.read(model.module, model.example()))
        self.shape = model.module.get_input_embeddings().weight.shape

    def can_generate(self) -> bool:
        """Whether transformers may write text with it."""
        return True

    def is_remote_code(self) -> bool:
        """Whether its code came with a checkpoint."""
        return False

    def get_experts_implementation(self) -> dict[str, Any]:
        """How experts are computed. It has none in torch."""
        return {}

    def get_input_embeddings(self) -> Any:
        """The shape of the token embedding, as a tensor without memory."""
        return SimpleNamespace(weight=torch.empty(self.shape, device="meta"))

    def get_output_embeddings(self) -> Any:
        """The head, if it is not computed with the rest."""
        return self.head

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        use_cache: bool,
        cache: Any = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """See `functions.OfTokens`. Without a mask there is no padding, and positions follow those of the cache.

        Args:
            cache: is changed. `past_key_values` is its name before transformers 5.24.
        """
        assert return_dict
        kept = (past_key_values if cache is None else cache) if use_cache else None
        batch, count = input_ids.shape
        if kept is not None and kept.get_seq_length():
            past = key_values.tensors(kept)
        else:
            past = [one.expand(batch, -1, -1, -1) for one in self.past]
        seen = past[0].shape[2]
        if attention_mask is None:
            attention_mask = torch.ones(batch, seen + count, dtype=torch.long)
        if position_ids is None:
            position_ids = torch.arange(seen, seen + count).expand(batch, -1)
        outputs, *present = self.run(input_ids, attention_mask, position_ids, *past)
        if kept is not None:
            key_values.keep(kept, [one.clone() for one in present])
        outputs = outputs[:, -logits_to_keep:]  # 0 keeps all
        logits = outputs.clone() if self.head is None else self.head(outputs)
        return CausalLMOutputWithPast(logits=logits, **key_values.as_output(kept))
