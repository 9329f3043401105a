"""Mixtures of experts of several families, small and random."""

import families
import torch
from torch import nn

from sqbench.models.experts import Experts, split_experts
from sqbench.models.language import LanguageModel
from sqbench.models.plain import make_plain

MOE = families.LLAMA | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    **{
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    "first_k_dense_replace": 1,
}
# Family -> its options, and how many modules hold experts.
MIXTURES = {
    "Mixtral": (families.LLAMA | {"num_local_experts": 4}, 2),
    "Qwen2Moe": (MOE | {"num_experts": 4, "shared_expert_intermediate_size": 24}, 2),
    "Qwen3Moe": (MOE | {"num_experts": 4, "head_dim": 8}, 2),
    "GptOss": (families.LLAMA | {"num_local_experts": 4, "head_dim": 8}, 2),
    "GraniteMoe": (families.LLAMA | {"num_local_experts": 4}, 2),
    "DeepseekV3": (MOE | DEEPSEEK, 1),
}


def stacked(family: str) -> LanguageModel:
    model = families.build(family, **MIXTURES[family][0])
    for name, parameter in model.module.named_parameters():
        if "experts" in name and name.endswith("bias"):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def mixture(family: str) -> LanguageModel:
    """A model as a run reads it."""
    model = stacked(family)
    make_plain(model.module)
    split_experts(model.module)
    return model


def experts_of(module: nn.Module) -> dict[str, Experts]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Experts)}
