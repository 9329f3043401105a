"""A language model with quantized weights as a folder of float weights, which every program that reads the float model loads."""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sqbench.data import Examples
from sqbench.errors import UserError, counted
from sqbench.exports.hugging_face import loaded
from sqbench.exports.parts import encoded_parts, others
from sqbench.exports.proof import Proof, compared
from sqbench.exports.target import Target
from sqbench.models.base import Model
from sqbench.models.functions import write_preparation
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Encoded, QuantLayer

NAME = "safetensors"


def write(model: Model, place: Path) -> None:
    """Fill a folder with decoded weights under the names of the float model, configuration, tokenizer and generation configuration.

    Raises:
        UserError: the model is none of language, a layer rounds its inputs, or it has a tensor that the float model lacks.
    """
    if not isinstance(model, LanguageModel):
        raise UserError(f"format={NAME}: is for language models, and {model.name} reads {model.kind}; use format=onnx or openvino")
    parts = encoded_parts(model.module, NAME)
    tensors = others(model.module, parts) | {f"{name}.weight": _weight(name, part) for name, part in parts.items()}
    with torch.device("meta"):
        own = type(model.module)(model.module.config).state_dict().keys()
    if strange := sorted(tensors.keys() - own):
        raise UserError(
            f"format={NAME}: {counted(strange, 'tensors that the float model lacks')}; use corrections=[], or format=onnx"
        )
    tensors |= {name: value for name, value in model.module.named_buffers() if name in own}
    config = {**model.module.config.to_dict(), "architectures": [type(model.module).__name__]}
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    save_file(whole, place / "model.safetensors", {"format": "pt"})
    write_preparation(model, place)
    (place / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str), encoding="utf-8")


def _weight(name: str, part: Encoded) -> Tensor:
    """The decoded weight of a part, in the dtype and in the layout of the float model."""
    if isinstance(part, QuantLayer) and part.activation is not None:
        raise UserError(
            f"format={NAME}: {name} rounds its inputs, which float weights cannot express; use weights alone (bits=w8a16), or"
            " format=compressed-tensors"
        )
    module = part.simulated() if isinstance(part, QuantLayer) else part
    assert isinstance(module, nn.Module)
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def prove(simulated: Model, folder: Path, examples: Examples) -> Proof:
    """Load an exported folder with transformers, and compare it on all evaluation examples.

    Raises:
        UserError: transformers cannot load the folder.
    """
    assert isinstance(simulated, LanguageModel)
    dtype = next(simulated.module.parameters()).dtype
    try:
        theirs = loaded(folder, dtype, simulated)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"out={folder}: is written, and transformers cannot load it ({error}); verify=false skips this") from error
    program = f"transformers {version('transformers')}"
    return compared(simulated, theirs, examples, program=program, dtype=str(dtype).removeprefix("torch."))


TARGET = Target(NAME, "transformers", write, prove)
