"""A quantized language model as a folder in the layout of compressed-tensors, which transformers and vLLM load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sqbench.checkpoints.compressed import global_scale
from sqbench.checkpoints.scales import to_e8m0
from sqbench.checkpoints.words import packed
from sqbench.errors import UserError
from sqbench.exports.experts import stored_names
from sqbench.exports.hugging_face import prove
from sqbench.exports.parts import check_floats, encoded_parts, others
from sqbench.exports.target import Target
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.nibbles import nibbles
from sqbench.models.base import Model
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

NAME = "compressed-tensors"
RULES = f"bits.as={NAME}"
Tensors = dict[str, Tensor]


def write(model: Model, place: Path) -> None:
    """Fill a folder with weights, configuration, tokenizer and generation configuration.

    Raises:
        UserError: the layout cannot express a format (which layer, which field, what would fit).
    """
    if not isinstance(model, LanguageModel):
        raise UserError(f"format={NAME}: is for language models, and {model.name} reads {model.kind}")
    encoded = encoded_parts(model.module, NAME)
    called = stored_names(model.module, NAME)
    layers = {name: part for name, part in encoded.items() if isinstance(part, QuantLayer)}
    for name in encoded.keys() - layers.keys():
        raise UserError(
            f"format={NAME}: {name} is a {type(encoded[name]).__name__}, which has no place there; use bits.embedding=null"
        )
    groups: dict[str, list[str]] = {}
    tensors: Tensors = {}
    for name, layer in layers.items():
        scheme, parts = _layer(name, layer)
        groups.setdefault(json.dumps(scheme, sort_keys=True), []).append(called.get(name, name))
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    floats = others(model.module, layers)
    check_floats(model.module, floats.keys(), NAME)
    tensors |= floats
    tensors = {_renamed(name, called): value for name, value in tensors.items()}
    ignored = [called.get(name, name) for name in _floating(model.module, layers)]
    config = {**model.module.config.to_dict(), "quantization_config": _configuration(groups, ignored)}
    config["architectures"] = [type(model.module).__name__]
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    save_file(whole, place / "model.safetensors", {"format": "pt"})
    model.tokenizer.save_pretrained(place)
    if getattr(model.module, "generation_config", None) is not None:
        model.module.generation_config.save_pretrained(place)
    (place / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str), encoding="utf-8")


def _layer(name: str, layer: QuantLayer) -> tuple[dict[str, Any], Tensors]:
    """The scheme of a layer as compressed-tensors writes it, and its tensors by the last part of their name."""
    if layer.format is None:
        raise UserError(f"format={NAME}: {name} has float weights and rounded inputs, which has no place there")
    scheme: dict[str, Any] = {"weights": _arguments(name, layer.format, activations=False)}
    tensors: Tensors = {}
    if layer.activation is not None:
        assert isinstance(layer.activation, ActivationQuantizer)
        fmt, static = layer.activation.fmt, layer.activation.static
        scheme["input_activations"] = _arguments(name, fmt, activations=True)
        if fmt.two_levels:
            tensors["input_global_scale"] = _whole_scale(fmt)
        if static is not None:
            tensors["input_scale"] = static.scale.reshape(1).float()
            if not fmt.symmetric:
                tensors["input_zero_point"] = static.zero_point.reshape(1).to(torch.int8)
    scheme["format"] = _kind(scheme)
    return scheme, tensors | _weight(layer.encoded, scheme["format"])


def _kind(scheme: Mapping[str, Any]) -> str:
    """The way in which compressed-tensors itself stores a layer of a scheme."""
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationScheme

    return str(infer_module_format(nn.Linear, QuantizationScheme(targets=["Linear"], **scheme)).value)


def _arguments(name: str, fmt: Format, *, activations: bool) -> dict[str, Any]:
    """A format as compressed-tensors writes it.

    Raises:
        UserError: it has no such format.
    """

    def refuse(field: str, value: Any, fits: str) -> UserError:
        slot = "bits.activations" if activations else "bits.weights"
        return UserError(f"format={NAME}: {name} has {slot}.{field}={value}, which cannot be written; use {fits}")

    if fmt.element not in ("int", "e4m3", "e2m1"):
        raise refuse("element", fmt.element, "int, e4m3 or e2m1")
    if fmt.has_minimum:
        raise refuse("zero_point", fmt.zero_point, "integer")
    if not fmt.contiguous:
        raise refuse("contiguous", "false", "groups of contiguous columns")
    if fmt.element == "e2m1" and not (fmt.two_levels or fmt.scale.dtype == "e8m0"):
        raise refuse("scale.dtype", fmt.scale.dtype, "bits=nvfp4 or bits=mxfp4")
    if activations and fmt.is_integer:  # a runtime rounds inputs by its own rules
        if fmt.symmetric and fmt.convention != "half_range":
            raise refuse("convention", fmt.convention, RULES)
        if not fmt.symmetric and fmt.shift != "before":
            raise refuse("shift", fmt.shift, RULES)
    if activations and fmt.dynamic and fmt.scale.dtype == "e8m0" and fmt.scale.rule != "even_m1":
        raise refuse("scale.rule", fmt.scale.rule, RULES)
    if fmt.two_levels and fmt.scale.order != NAME:
        raise refuse("scale.order", fmt.scale.order, RULES)
    strategy = "tensor_group" if fmt.two_levels else fmt.granularity
    told: dict[str, Any] = {
        "num_bits": fmt.bits,
        "type": "int" if fmt.is_integer else "float",
        "symmetric": fmt.symmetric,
        "strategy": strategy,
        "group_size": fmt.group_size if strategy in ("group", "tensor_group") else None,
        "block_structure": [fmt.block_rows, fmt.group_size] if strategy == "block" else None,
        "dynamic": "local" if fmt.two_levels and activations else fmt.dynamic,
    }
    if fmt.two_levels:
        told["scale_dtype"] = "torch.float8_e4m3fn"
    elif fmt.scale.dtype == "e8m0":
        told["scale_dtype"] = "torch.uint8"
    return {key: value for key, value in told.items() if value is not None}


def _whole_scale(fmt: Format) -> Tensor:
    """The scale of scales as it is stored: what a block's scale is multiplied by before it is rounded."""
    assert fmt.amax is not None
    return global_scale(torch.tensor([fmt.amax], dtype=torch.float32), fmt)


def _weight(encoded: EncodedTensor, kind: str) -> Tensors:
    """The tensors of a weight."""
    fmt, codes = encoded.format, encoded.codes
    scale, zeros = (_by_row(values, fmt, len(codes)) for values in (encoded.scale, encoded.zero_point))
    tensors: Tensors = {}
    if kind == "pack-quantized":
        tensors["weight_packed"] = packed(codes, fmt.bits, 1)
        tensors["weight_shape"] = torch.tensor(codes.shape)
    elif fmt.element == "e2m1":
        tensors["weight_packed"] = nibbles(codes)
    else:
        tensors["weight"] = codes if fmt.is_integer else codes.view(torch.float8_e4m3fn)
    if fmt.two_levels:
        whole = _whole_scale(fmt)
        tensors["weight_scale"], tensors["weight_global_scale"] = (scale * whole).to(torch.float8_e4m3fn), whole
    elif fmt.scale.dtype == "e8m0":
        tensors["weight_scale"] = to_e8m0(scale)
    else:
        tensors["weight_scale"] = scale.to(getattr(torch, fmt.scale.dtype))
    if not fmt.symmetric:
        signed = zeros.to(torch.int8)
        tensors["weight_zero_point"] = packed(signed, fmt.bits, 0) if kind == "pack-quantized" else signed
    return tensors


def _by_row(values: Tensor, fmt: Format, rows: int) -> Tensor:
    """Scales over blocks as compressed-tensors stores them: [1], [rows, 1], [rows, groups] or [row blocks, column blocks]."""
    if fmt.granularity == "tensor":
        return values.reshape(1)
    return values.squeeze(-1) if fmt.group_size is not None else values.reshape(rows, 1)


def _renamed(name: str, called: Mapping[str, str]) -> str:
    owner, _, leaf = name.rpartition(".")
    return f"{called.get(owner, owner)}.{leaf}"


def _floating(module: nn.Module, layers: Mapping[str, QuantLayer]) -> list[str]:
    """Modules with a float matrix: layers without codes, and routers, which some programs hold as linear layers."""
    return [
        name
        for name, part in module.named_modules()
        if isinstance(weight := getattr(part, "weight", None), Tensor)
        and weight.dim() == 2
        and not isinstance(part, nn.Embedding)
        and not {name, name.removesuffix(".layer")} & layers.keys()
    ]


def _configuration(groups: Mapping[str, list[str]], ignored: list[str]) -> dict[str, Any]:
    """The entry `quantization_config`. Layers of one scheme are a group. They are named if there are several groups."""
    schemes = [(json.loads(told), names) for told, names in sorted(groups.items(), key=lambda item: -len(item[1]))]
    kinds = sorted({scheme["format"] for scheme, _ in schemes})
    return {
        "quant_method": NAME,
        "format": kinds[0] if len(kinds) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {
            f"group_{number}": {**scheme, "targets": ["Linear"] if len(schemes) == 1 else names}
            for number, (scheme, names) in enumerate(schemes)
        },
    }


TARGET = Target(NAME, "transformers", write, prove)
