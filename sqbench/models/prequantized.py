"""Refusal of checkpoints that are quantized already. They give no float baseline. The error names their format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqbench.errors import UserError
from sqbench.models.folder import Stored

# Entries of config.json that mark quantized weights, at any depth: from transformers, MLX and early compressed-tensors.
ENTRIES = ("quantization_config", "quantization", "compression_config")
# Files beside config.json that mark quantized weights, and the libraries that write them.
FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ or HQQ",
    "hf_quant_config.json": "ModelOpt",
}
# Last parts of tensor names that mark quantized weights, and the libraries or formats that use them.
NAMES = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors or ModelOpt",
    "weight_scale_inv": "float8 in blocks",
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
    "W_q": "HQQ",
    "_data": "quanto",
    "qdata": "torchao",
}


def refuse_quantized(folder: Path, config: dict[str, Any], tensors: Mapping[str, Stored], place: str) -> None:
    """Raise UserError if a folder's configuration, the files beside it or its tensors say that its weights are quantized.

    Args:
        place: the folder's name in errors: a key and its value.
    """
    found = _in_config(config) or _in_files(folder) or _in_tensors(tensors)
    if found:
        raise UserError(f"{place}: its weights are quantized already: {found}; use model=checkpoint, or its float model")


def _in_config(config: Any, path: str = "") -> str | None:
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key in ENTRIES and value:
            said = value if isinstance(value, dict) else {"format": value}
            words = [str(said.get("quant_method") or said.get("quant_algo") or "")]
            words += [f"{name}={said[name]}" for name in ("format", "bits") if said.get(name)]
            return f"{', '.join(filter(None, words)) or 'unnamed format'} ({path}{key} in config.json)"
        if inner := _in_config(value, f"{path}{key}."):
            return inner
    return None


def _in_files(folder: Path) -> str | None:
    return next((f"{whose} ({file} beside config.json)" for file, whose in FILES.items() if (folder / file).is_file()), None)


def _in_tensors(tensors: Mapping[str, Stored]) -> str | None:
    for name, tensor in tensors.items():
        last = name.replace(":", ".").rsplit(".", 1)[-1]
        if last in NAMES:
            return f"{NAMES[last]} (the tensor {name})"
        if not tensor.is_wide_float and (tensor.dtype.startswith("F") or last == "weight"):  # masks and counts are integers, too
            return f"{tensor.dtype} (the tensor {name})"
    return None
