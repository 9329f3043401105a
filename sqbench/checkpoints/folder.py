"""A folder in Hugging Face layout whose weights are quantized: its layout is detected from its files, and a model is made of it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sqbench.calibration import Statistics
from sqbench.checkpoints.codes import LAYOUT as CODES
from sqbench.checkpoints.compressed import LAYOUT as COMPRESSED
from sqbench.checkpoints.fp8 import LAYOUT as FP8
from sqbench.checkpoints.inputs import quantizers_of
from sqbench.checkpoints.integers import AUTO_ROUND, AWQ, GPTQ
from sqbench.checkpoints.mxfp4 import LAYOUT as MXFP4
from sqbench.checkpoints.places import places
from sqbench.checkpoints.stored import Layout, StoredLayer
from sqbench.checkpoints.torchao import LAYOUT as TORCHAO
from sqbench.errors import UserError, counted, known
from sqbench.formats.codec import decode
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.models.architectures import refuse_architecture
from sqbench.models.experts import split_experts
from sqbench.models.folder import metadata, read_config, stored, weight_files
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel, readable
from sqbench.parts.task import Task
from sqbench.pipeline.finite import check_scales, check_weight
from sqbench.pipeline.report import begin_report
from sqbench.pipeline.slots import put_slot, slots_of
from sqbench.quant.access import is_linear
from sqbench.quant.layers import QuantLayer

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (COMPRESSED, GPTQ, AWQ, AUTO_ROUND, TORCHAO, FP8, MXFP4, CODES)}
BESIDE = ("quantize_config.json", "quant_config.json")  # where GPTQ and AWQ of old keep what config.json has today


@dataclass(frozen=True)
class QuantizedFolder:
    """A quantized checkpoint. Its headers are read, and its weights are not.

    Attributes:
        config: the content of config.json, without its part on quantization.
        layout: the name of the way in which its quantized layers are stored.
        layers: layer -> how it is stored.
        files: name of a tensor -> its file.
    """

    folder: Path
    place: str
    config: dict[str, Any]
    layout: str
    layers: dict[str, StoredLayer]
    files: dict[str, Path]

    @classmethod
    def of(cls, folder: Path, place: str) -> "QuantizedFolder":
        """Detect the layout of a folder, and hold its headers against it.

        Args:
            place: the folder's name in errors: a key and its value.

        Raises:
            UserError: the folder is no quantized checkpoint, its layout is not known, or something does not fit.
        """
        config = read_config(folder, place)
        told = _told(config, folder)
        if told is None:
            raise UserError(f"{place}: {folder} says nothing of quantization; use model=hf for a float model")
        method = str(told.get("quant_method", "")).lower()
        if method not in LAYOUTS:
            raise UserError(f"{place}: quant_method={method or '(none)'} in {folder}: {known(method, LAYOUTS)}")
        refuse_architecture(config, False, place)
        tensors = stored(weight_files(folder, config, place), place)
        told = {**told, "metadata": metadata({tensor.file for tensor in tensors.values()})}
        layers = LAYOUTS[method].layers(told, {name: tensor.shape for name, tensor in tensors.items()}, place)
        if not layers:
            raise UserError(f"{place}: {folder} is said to be {method}, and none of its tensors is quantized")
        owned = {name for one in layers.values() for name in one.names}
        if strange := [name for name, tensor in tensors.items() if name not in owned and not tensor.is_wide_float]:
            raise UserError(f"{place}: {counted(strange, 'tensors are neither floats nor of a quantized layer')}")
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        return cls(folder, place, plain, method, layers, {name: tensor.file for name, tensor in tensors.items()})

    @property
    def model_types(self) -> tuple[str, ...]:
        """What transformers may call the architecture of the float model."""
        return (str(self.config.get("model_type")),)

    @property
    def scheme(self) -> Scheme:
        """The scheme that most layers have. Its name is that of the same scheme here, or the formats in words."""
        weights, activations = Counter((one.weight, one.activation) for one in self.layers.values()).most_common(1)[0][0]
        words = [str(weights), *([str(activations)] if activations else [])]
        known_as = {name: one for name, one in schemes().items() if alike(one.weights, weights)}
        same = next((name for name, one in known_as.items() if alike(one.activations, activations)), None)
        return Scheme(same or ", ".join(words), weights, activations, layers=tuple(sorted(self.layers)))

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        with safe_open(self.files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def weights(self, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decoded layers under the names of a float checkpoint."""
        return LAYOUTS[self.layout].weights(decoded)

    def tokenizer(self) -> Any:
        """The tokenizer as transformers loads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def vocabulary(self) -> dict[str, int] | None:
        """Token -> its number. None if it is not known."""
        return vocabulary_of(self.folder)

    def load(self, device: torch.device, *, name: str, fingerprint: str, dtype: str, keep: tuple[str, ...] = ()) -> LanguageModel:
        """The quantized model. Its report says how much is quantized, and the format of every layer.

        Raises:
            UserError: transformers cannot build the model, tensors are missing or left over, or a scale is not finite.
        """
        encoded = {layer: one.encoded(self.read) for layer, one in self.layers.items()}
        for layer, one in encoded.items():
            check_scales(layer, one)
        decoded = {layer: decode(one) for layer, one in encoded.items()}
        for layer, weight in decoded.items():
            check_weight(layer, weight)
        plain = self.floating(decoded, getattr(torch, dtype), name=name, fingerprint=fingerprint, keep=keep)
        split_experts(plain.module)
        place = places(plain.module, decoded)
        del decoded
        encoded = {place[layer]: one for layer, one in encoded.items()}
        inside = {layer for layer in encoded if layer in plain.topology.layers}
        tables = {layer: slot for slot, layer in plain.tables().items()}
        if strange := sorted(encoded.keys() - inside - tables.keys()):
            raise UserError(f"{self.place}: {counted(strange, 'quantized tensors that are no layers of the model')}")
        slots = {tables[layer]: one.format for layer, one in encoded.items() if layer in tables}
        scheme = replace(self.scheme, layers=tuple(sorted(inside)), embedding=slots.get("embedding"), head=slots.get("head"))
        report = begin_report(Task(plain, Statistics({}, plain.example()), scheme))
        inputs = {place[layer]: found for layer, one in self.layers.items() if (found := one.input(self.read)) is not None}
        module, quantizers = share(plain.module), quantizers_of(inputs, plain.topology.site)
        embedded = {name: slot for slot, name, _ in slots_of(plain, scheme) if slot != "head"}
        for layer, one in encoded.items():
            if layer in embedded:
                put_slot(module, plain.tables(), embedded[layer], layer, one)
                continue
            if not is_linear(before := module.get_submodule(layer)):
                raise UserError(f"{self.place}: {layer} is a {type(before).__name__}, and its weight is quantized")
            module.set_submodule(layer, QuantLayer(before, one, quantizers.get(layer)))
        report["per_layer"] = [{"layer": layer, "format": str(one.format)} for layer, one in encoded.items()]
        report["checkpoint"] = {"layout": self.layout}
        return plain.with_module(module.to(device), report)

    def floating(
        self, decoded: Mapping[str, Tensor], dtype: torch.dtype, *, name: str, fingerprint: str, keep: tuple[str, ...] = ()
    ) -> LanguageModel:
        """The model with these weights in its quantized layers. transformers itself says which tensors belong to it.

        Raises:
            UserError: transformers cannot build the model, or tensors are missing or left over.
        """
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        owned = {tensor for one in self.layers.values() for tensor in one.names}
        weights = {tensor: self.read(tensor).to(dtype) for tensor in self.files if tensor not in owned}
        weights |= {tensor: weight.to(dtype) for tensor, weight in self.weights(decoded).items()}
        with readable(name, self.folder):
            config = AutoConfig.for_model(**self.config)
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                architecture = type(AutoModelForCausalLM.from_config(config))
            module, told = architecture.from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
            tokenizer = self.tokenizer()
        wrong = {
            "missing": sorted(told["missing_keys"]),
            "unexpected": sorted(told["unexpected_keys"]),
            "of another shape": sorted(str(key) for key in told["mismatched_keys"]),
        }
        if said := [counted(names, f"tensors {what}") for what, names in wrong.items() if names]:
            raise UserError(f"{self.place}: {'; '.join(said)}")
        module.requires_grad_(False)
        return LanguageModel(module.eval(), name, fingerprint, keep, tokenizer=tokenizer)


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Token -> its number, from a folder's tokenizer.json. None if there is none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    found: dict[str, int] | None = Tokenizer.from_file(str(path)).get_vocab() if path.is_file() else None
    return found


def _told(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any] | None:
    """What a folder says of its quantization."""
    if config.get("quantization_config"):
        return dict(config["quantization_config"])
    for file, method in zip(BESIDE, ("gptq", "awq"), strict=True):
        if (folder / file).is_file():
            return {"quant_method": method, **json.loads((folder / file).read_text(encoding="utf-8"))}
    return None


def alike(first: Format | None, second: Format | None) -> bool:
    """Whether two formats are the same, apart from conventions and dtypes of scales."""

    def plain(fmt: Format | None) -> Any:
        if fmt is None:
            return None
        shared = (fmt.granularity, fmt.group_size, fmt.block_rows, fmt.dynamic)
        return (fmt.element, fmt.bits, fmt.symmetric, fmt.zero_point, fmt.ties, *shared)

    return bool(plain(first) == plain(second))
