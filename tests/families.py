"""Language models of several families, small and random."""

import torch
import transformers

from sqbench.models.language import LanguageModel

SMALL = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}


def build(family: str, **options: object) -> LanguageModel:
    """A random model whose norms are not the identity."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **options)
    head = {"GPT2": "LMHeadModel", "Bert": "LMHeadModel"}.get(family, "ForCausalLM")
    module = getattr(transformers, f"{family}{head}")(config).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2 + (0.5 if name.endswith("bias") else 0.0))
    return LanguageModel(module, family, family)


def llama() -> LanguageModel:
    return build("Llama", **LLAMA)


def gpt2() -> LanguageModel:
    return build("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=64)


def opt(**options: object) -> LanguageModel:
    return build("OPT", **OPT, **options)


def gemma() -> LanguageModel:
    return build("Gemma2", head_dim=8, **LLAMA)
