"""A quantized language model as one GGUF file, which llama.cpp runs. The package gguf writes it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqbench.checkpoints import blocks, gguf_positions
from sqbench.checkpoints.gguf_names import Names
from sqbench.errors import UserError, known
from sqbench.exports.gguf_tokenizer import add_tokenizer
from sqbench.exports.llama_cpp import prove
from sqbench.exports.parts import check_floats, encoded_parts, others
from sqbench.exports.target import Target
from sqbench.formats.format import Format
from sqbench.models.base import Model
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Encoded, QuantLayer
from sqbench.quant.tables import TiedLayer

NAME = "gguf"
FILE = "model.gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # transformers' name -> llama.cpp's
# What llama.cpp computes in all of them.
FIXED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
}
FITS = {"MXFP4": "mxfp4a16"}  # type -> scheme, where it has another name


def write(model: Model, place: Path) -> None:
    """Write a file with weights, configuration and tokenizer.

    Raises:
        UserError: GGUF cannot express a format (which layer, which field, what would fit), the architecture or the tokenizer.
    """
    from gguf import GGUFWriter

    if not isinstance(model, LanguageModel):
        raise UserError(f"format={NAME}: is for language models, and {model.name} reads {model.kind}")
    config = model.module.config.to_dict()
    architecture = _architecture(config, model.name)
    parts = {name: part for name, part in encoded_parts(model.module, NAME).items() if not isinstance(part, TiedLayer)}
    kinds = {name: _kind(name, part) for name, part in parts.items()}
    names = Names.of(architecture, config)
    in_file = {name: told for told, name in names.in_model.items()}
    writer = GGUFWriter(None, architecture)
    _add_configuration(writer, config, kinds)
    gguf_positions.add(writer, config, architecture, f"format={NAME}: {model.name}")
    add_tokenizer(writer, model.tokenizer, model.vocabulary)
    weights = {f"{name}.weight": (kinds[name], blocks.stored(part.encoded)) for name, part in parts.items()}
    plain = others(model.module, parts)
    check_floats(model.module, plain.keys(), NAME)
    floats = {name: _floats(value) for name, value in plain.items()}
    for name, (kind, values) in sorted({**floats, **weights}.items()):
        _add(writer, in_file[name], kind, values, names)
    writer.write_header_to_file(place / FILE)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(config: Mapping[str, Any], name: str) -> str:
    """llama.cpp's name of a model.

    Raises:
        UserError: this file writes no such model, or llama.cpp computes it otherwise.
    """
    kind = str(config["model_type"])
    if kind not in ARCHITECTURES:
        raise UserError(f"format={NAME}: {name} is of the architecture {kind}: {known(kind, ARCHITECTURES)}")
    for key, value in FIXED.items():
        if (told := config.get(key, value)) != value:
            raise UserError(f"format={NAME}: {name} has {key}={told}, which is not written; must be {value}")
    return ARCHITECTURES[kind]


def _kind(name: str, part: Encoded) -> str:
    """The type of blocks of a weight.

    Raises:
        UserError: there is none, or the input is rounded.
    """
    fmt = part.format
    activation = part.activation if isinstance(part, QuantLayer) else None
    if fmt is None or activation is not None:
        raise UserError(f"format={NAME}: {name} has rounded inputs, which llama.cpp rounds by rules of its own; use bits=q4_0")
    if (kind := blocks.kind_of(fmt)) is not None:
        return kind
    field, value, fits, scheme = _difference(fmt)
    raise UserError(
        f"format={NAME}: {name} has {field}={value} in {fmt}, which cannot be written; use {fits}, as in bits={scheme}"
        f" (there are {', '.join(FITS.get(kind, kind.lower()) for kind in blocks.TYPES)})"
    )


def _difference(fmt: Format) -> tuple[str, Any, Any, str]:
    """The first field in which a format differs from the type that is most like it, both values, and that type's scheme."""
    own = blocks.storage(fmt)
    unlike = {
        kind: next(field for field, value in blocks.storage(one).items() if own[field] != value)
        for kind, one in blocks.TYPES.items()
    }
    fields = list(own)
    kind = max(unlike, key=lambda kind: fields.index(unlike[kind]))
    field = unlike[kind]
    return field, own[field], blocks.storage(blocks.TYPES[kind])[field], FITS.get(kind, kind.lower())


def _floats(value: Tensor) -> tuple[str, Tensor]:
    """A float tensor and its type. llama.cpp reads vectors in float32 alone."""
    value = value.detach().cpu()
    if value.dim() == 1 or value.dtype == torch.float32:
        return "F32", value.float()
    return ("F16", value) if value.dtype == torch.float16 else ("BF16", value.view(torch.uint8))


def _add(writer: Any, name: str, kind: str, values: Tensor, names: Names) -> None:
    """Add a tensor with its rows in the order of llama.cpp."""
    from gguf import GGMLQuantizationType

    order = names.order(name, len(values))
    assert order is not None, f"transformers only orders the rows of {name}"
    rows = values.cpu().numpy()[np.argsort(order)]
    writer.add_tensor(name, np.ascontiguousarray(rows), raw_dtype=GGMLQuantizationType[kind])


def _add_configuration(writer: Any, config: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_quantization_version(GGML_QUANT_VERSION)
    ((most, _),) = Counter(kinds.values()).most_common(1)
    writer.add_file_type(getattr(LlamaFileType, f"MOSTLY_{most}", LlamaFileType.GUESSED))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


TARGET = Target(NAME, "gguf", write, prove)
