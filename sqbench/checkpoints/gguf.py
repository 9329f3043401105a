"""A model in GGUF files. The package gguf parses them, and transformers names their tensors and builds the model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqbench.checkpoints import blocks, gguf_positions
from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.checkpoints.gguf_config import configuration
from sqbench.checkpoints.gguf_names import Names
from sqbench.checkpoints.gguf_parts import Part, parts_of
from sqbench.checkpoints.stored import Read, StoredLayer, by_layer
from sqbench.errors import UserError, counted
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme

ONE = ("llama", "mistral")  # which files call llama
FLOATS = ("F32", "F16", "BF16")
TABLES = ("token_embd.weight", "output.weight")  # the embedding and the head, in every architecture


@dataclass(frozen=True)
class GGUFFile(QuantizedFolder):
    """A model in a GGUF file, or in the parts of one. Headers are read, and weights are not.

    Attributes:
        parts: the files in their order. The first one has the keys.
        tensors: name of a tensor in the model -> the tensor in the file, as the package gguf describes it.
        names: how transformers names and changes them.
    """

    parts: tuple[Path, ...]
    tensors: Mapping[str, Any]
    names: Names

    @classmethod
    def of(cls, folder: Path, place: str) -> "GGUFFile":
        """Read the headers of a file, and of those beside it that are parts of the same model.

        Args:
            folder: the file.
            place: the file's name in errors: a key and its value.

        Raises:
            UserError: it is no complete GGUF file, transformers does not know its architecture, or a tensor has no place.
        """
        parts = parts_of(folder, place)
        file_of = {name: part.path for part in parts for name in part.tensors}
        stored = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        factors = stored.pop(gguf_positions.FACTORS, None)
        config, names = _mapped(parts[0], stored, None if factors is None else _values(factors), place)
        if strange := [name for name in stored if name not in names.in_model]:
            raise UserError(f"{place}: transformers has no place for {counted(strange, 'tensors')}")
        tensors = {names.in_model[name]: tensor for name, tensor in stored.items()}
        files = {names.in_model[name]: file_of[name] for name in stored}
        layers = {}
        for name, tensor in tensors.items():
            if (kind := tensor.tensor_type.name) not in FLOATS:
                fmt = _format(tensor, names, place)
                weight = partial(_weight, name, kind)
                layers[name.removesuffix(".weight")] = StoredLayer(fmt, None, (name,), weight)
        if not layers:
            raise UserError(f"{place}: {folder} holds floats alone; use a Hugging Face folder of the model with model=hf")
        return cls(folder.parent, place, config, "gguf", layers, files, tuple(part.path for part in parts), tensors, names)

    @property
    def model_types(self) -> tuple[str, ...]:
        """See `QuantizedFolder.model_types`. llama.cpp computes several in one way."""
        (own,) = super().model_types
        return ONE if own in ONE else (own,)

    @property
    def scheme(self) -> Scheme:
        """See `QuantizedFolder.scheme`. Its name is that of the type."""
        slots = [self.names.in_model.get(name, "").removesuffix(".weight") for name in TABLES]
        inside = {layer: one for layer, one in self.layers.items() if layer not in slots}
        kinds = Counter(self.tensors[one.names[0]].tensor_type.name for one in (inside or self.layers).values())
        ((kind, _),) = kinds.most_common(1)
        embedding, head = (self.layers[layer].weight if layer in self.layers else None for layer in slots)
        return Scheme(kind.lower(), blocks.format_of(kind), layers=tuple(sorted(self.layers)), embedding=embedding, head=head)

    def read(self, name: str) -> Tensor:
        """A tensor as transformers orders it. That of a quantized layer is its bytes, uint8 [out, bytes]."""
        tensor = self.tensors[name]
        if tensor.tensor_type.name not in FLOATS:
            return torch.from_numpy(tensor.data[self.names.order(tensor.name, len(tensor.data))])
        values = self.names.values(tensor.name, _values(tensor).numpy())
        if values is None:
            raise UserError(f"{self.place}: transformers makes several tensors of {tensor.name}, or one of several")
        return torch.from_numpy(np.array(values, np.float32))

    def weights(self, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `QuantizedFolder.weights`."""
        return by_layer(decoded)

    def tokenizer(self) -> Any:
        """The tokenizer as transformers makes it of the file."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, gguf_file=self.parts[0].name, local_files_only=True)

    def vocabulary(self) -> dict[str, int]:
        """See `QuantizedFolder.vocabulary`. transformers adds tokens beyond those of the file."""
        found: dict[str, int] = self.tokenizer().get_vocab()
        return {token: number for token, number in found.items() if number < self.config["vocab_size"]}


def _values(tensor: Any) -> Tensor:
    """The values of a float tensor in the order of the file, float32."""
    from gguf.quants import dequantize

    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))


def _weight(name: str, kind: str, read: Read) -> EncodedTensor:
    return blocks.encoded(read(name), kind)


def _format(tensor: Any, names: Names, place: str) -> Format:
    """The format of a quantized matrix.

    Raises:
        UserError: its type cannot be decoded, or transformers changes more than the order of its rows.
    """
    fmt = blocks.format_of(tensor.tensor_type.name)
    if fmt is None:
        raise UserError(f"{place}: {tensor.name} is of type {tensor.tensor_type.name}, which the package gguf does not decode")
    matrix = tensor.data.ndim == 2 and tensor.name.endswith(".weight")
    if not matrix or names.order(tensor.name, len(tensor.data)) is None:
        raise UserError(f"{place}: {tensor.name} is quantized, and transformers makes something else of it than a layer's weight")
    return fmt


def _mapped(first: Part, stored: Mapping[str, Any], factors: Tensor | None, place: str) -> tuple[dict[str, Any], Names]:
    """The model's configuration, and the names of its tensors.

    Args:
        first: the part that has the keys.
        stored: names of the tensors of all parts.

    Raises:
        UserError: transformers does not know the architecture, or computes it otherwise.
    """
    try:
        architecture = str(first.keys["general.architecture"])
        config = configuration(first, architecture, stored, factors, place)
        return config, Names.of(architecture, config)
    except (ValueError, KeyError, IndexError, RuntimeError, AssertionError) as error:  # among them NotImplementedError
        raise UserError(f"{place}: {first.path} is no causal language model that transformers can load ({error})") from error
