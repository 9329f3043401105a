"""GGUF files of small models, written by the package gguf alone, as llama.cpp's converter does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from transformers import LlamaForCausalLM, PreTrainedModel

Array = Any
FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # transformers' name -> llama.cpp's, where they differ
Choose = Callable[[str, Array], tuple[GGMLQuantizationType, Array]]  # (name in the file, float values) -> type, bytes


def drawn(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> Array:
    """Random bytes [rows, bytes] of a matrix whose values are small and finite."""
    values, size = GGML_QUANT_SIZES[kind]
    generator, found = np.random.default_rng(seed), np.empty((0, size), np.uint8)
    with np.errstate(all="ignore"):
        while len(found) < rows * columns // values:
            some = generator.integers(0, 256, (4096, size), np.uint8)
            found = np.concatenate([found, some[np.abs(dequantize(some, kind)).max(1) < 4]])
    return found[: rows * columns // values].reshape(rows, -1)


def permuted(weight: Array, heads: int) -> Array:
    """Rows in the order of llama.cpp: its rotation pairs neighbours, and that of transformers pairs halves."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def all_of(kind: GGMLQuantizationType) -> Choose:
    """Matrices in one type, and vectors in float32."""
    return lambda name, values: (kind, quantize(values, kind)) if values.ndim == 2 else (GGMLQuantizationType.F32, values)


def written(
    module: PreTrainedModel,
    file: Path,
    choose: Choose,
    more: Mapping[str, Any] | None = None,
    *,
    parts_of: int = 0,
    merge: bool = False,
) -> Path:
    """A file of a model over bytes.

    Args:
        more: method of GGUFWriter -> its arguments, called last.
        merge: the last token is a merge of two, because llama.cpp loads no tokenizer without one.
        parts_of: tensors in each part of a split file. 0 writes one file.
    """
    config = module.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = GGUFWriter(file, architecture, split_max_tensors=parts_of)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "sliding_window", None) is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    add_byte_tokens(writer, merge)
    (kind,) = (kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    for name, parameter in module.named_parameters():
        values = parameter.detach().numpy()
        if architecture in ("gemma2", "gemma3") and "norm" in name:
            values = values + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = permuted(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert told is not None
        kind, data = choose(told, np.ascontiguousarray(values))
        writer.add_tensor(told, data, raw_dtype=kind)
    for method, arguments in (more or {}).items():
        getattr(writer, method)(*arguments)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_byte_tokens(writer: GGUFWriter, merge: bool = False) -> None:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if merge:
        alphabet[-1] = "th"
        writer.add_token_merges(["t h"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(alphabet)
    writer.add_token_types([1] * len(alphabet))
    writer.add_token_scores([0.0] * len(alphabet))


def llama(*, tied: bool = True, theta: float = 10000.0, layers: int = 2) -> LlamaForCausalLM:
    """A random model whose rows have whole blocks of every type."""
    from transformers import LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config)
    for parameter in module.parameters():
        parameter.data.mul_(4) if parameter.dim() == 2 else parameter.data.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(False)
