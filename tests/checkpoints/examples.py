"""Quantized folders that are made of a float folder by the package compressed-tensors, or by hand."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def rewritten(source: Path, folder: Path, config: Mapping[str, Any], change: Callable[[str, Tensor], Tensors]) -> Path:
    """A copy of a float folder in which `change` says what each weight of a block becomes.

    Args:
        config: the entry quantization_config.
        change: (layer, weight [out, in]) -> tensors by the last part of their name.
    """
    shutil.copytree(source, folder)
    tensors: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer, _, leaf = name.rpartition(".")
        if "proj" in layer and leaf == "weight":
            tensors |= {f"{layer}.{part}": value.contiguous() for part, value in change(layer, tensor).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": dict(config)}))
    return folder


def by_compressed_tensors(source: Path, folder: Path, preset: str, **changes: Any) -> Path:
    """A folder in a preset of compressed-tensors. Ranges, codes and packing are that package's own.

    Args:
        changes: fields of the weights' arguments.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme(preset, ["Linear"])
    for field, value in changes.items():
        setattr(scheme.weights, field, value)
    kind = infer_module_format(torch.nn.Linear, scheme)
    args = scheme.weights

    def change(layer: str, weight: Tensor) -> Tensors:
        blocks = weight.unflatten(1, (-1, args.group_size)) if args.group_size else weight
        if args.strategy == "tensor":
            lo, hi = blocks.amin(), blocks.amax()
        else:
            lo, hi = (end(-1, keepdim=args.strategy == "channel") for end in (blocks.amin, blocks.amax))
        whole = generate_gparam(weight.amin(), weight.amax()) if args.strategy == "tensor_group" else None
        scale, zero = calculate_qparams(lo, hi, args, global_scale=whole)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        state |= {} if whole is None else {"weight_global_scale": whole}
        packed = BaseCompressor.get_value_from_registry(kind.value).compress(state, scheme)
        inputs = scheme.input_activations
        if inputs is not None and inputs.dynamic is False:
            packed["input_scale"] = torch.tensor([0.03])
        if inputs is not None and inputs.dynamic == "local":
            packed["input_global_scale"] = torch.tensor([500.0])
        return {part: value.detach() for part, value in packed.items()}

    scheme.format = kind
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=kind.value, ignore=["lm_head"])
    return rewritten(source, folder, json.loads(json.dumps(config.to_dict(), default=str)), change)
