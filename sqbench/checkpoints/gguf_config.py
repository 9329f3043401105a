"""The configuration of the model in a GGUF file: what transformers reads of its keys, and what it leaves out."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from sqbench.checkpoints import gguf_positions
from sqbench.checkpoints.gguf_parts import Part
from sqbench.errors import UserError

# Keys that transformers does not read, and the values for which it computes what llama.cpp computes.
GRANTED: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"attention.key_length": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {
        "attention.key_length": 256,
        "attention.sliding_window_pattern": 6,
        "rope.freq_base_swa": 10000.0,
        "final_logit_softcapping": None,
    },
}
TIED = ("falcon", "bloom")  # whatever tensors they have, as in transformers
BY_TENSORS = ("stablelm",)  # whose biases and norms transformers derives from the names of tensors
PARTIAL = ("gemma4", "minimax-m2")  # whose rotated part of a head transformers reads in a way of its own


def configuration(first: Part, architecture: str, tensors: Collection[str], factors: Tensor | None, place: str) -> dict[str, Any]:
    """The configuration as transformers has it.

    Args:
        first: the part that has the keys.
        architecture: llama.cpp's name of it.
        tensors: names in all parts.
        factors: see `gguf_positions.read`.

    Raises:
        UserError: transformers would compute something else than llama.cpp.
        ValueError, KeyError, IndexError, RuntimeError: transformers does not know the model.
    """
    from transformers import AutoConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    own = f"{architecture}."
    told = {key.removeprefix(own): value for key, value in first.keys.items() if key.startswith(own)}
    if architecture in BY_TENSORS and first.split[0] > 1:
        raise UserError(
            f"{place}: is a {architecture} in parts, and transformers needs all its names; merge them with llama-gguf-split --merge"
        )
    for key, value in GRANTED.get(architecture, {}).items():
        if told.get(key, value) != value:
            raise UserError(f"{place}: {architecture}.{key}={told[key]}, and transformers computes as for {value}")
    config: dict[str, Any] = load_gguf_checkpoint(first.path)["config"]
    config["tie_word_embeddings"] = "output.weight" not in tensors or architecture in TIED
    if config["model_type"] == "mistral":
        config["sliding_window"] = None  # llama.cpp has none, and transformers takes 4096 for granted
    if "attention.key_length" in told and "attention.key_length" not in GGUF_CONFIG_MAPPING.get(architecture, {}):
        config.setdefault("head_dim", told["attention.key_length"])
    config = gguf_positions.read(config, architecture, told, factors, place)
    if architecture not in PARTIAL:
        _check_rotated(AutoConfig.for_model(**config), told, place)
    return config


def _check_rotated(config: Any, told: Mapping[str, Any], place: str) -> None:
    """Raise UserError if llama.cpp rotates another part of each head than transformers."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None or "rope.dimension_count" not in told:
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(size * rope.get("full_attention", rope).get("partial_rotary_factor", 1.0))
    if told["rope.dimension_count"] != rotated:
        raise UserError(
            f"{place}: rope.dimension_count={told['rope.dimension_count']}, and transformers rotates {rotated} of {size}"
        )
