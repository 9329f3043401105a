"""A GGUF file, which llama.cpp runs. The package gguf parses it, and transformers names its tensors and builds the model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqbench.checkpoints import blocks
from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.checkpoints.gguf_names import Names
from sqbench.checkpoints.stored import Read, StoredLayer, by_layer
from sqbench.errors import UserError, counted
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme

MAGIC = b"GGUF"
FLOATS = ("F32", "F16", "BF16")
TABLES = ("token_embd.weight", "output.weight")  # the embedding and the head, in every architecture
ROPE = "rope.scaling.type"


def gguf_in(folder: Path, place: str) -> Path | None:
    """The GGUF file of a folder, by its first bytes. None if there is none.

    Raises:
        UserError: there are several, or weights in safetensors beside it.
    """
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _begins(path) == MAGIC]
    if len(found) > 1:
        raise UserError(
            f"{place}: {folder} holds {counted([path.name for path in found], 'GGUF files')}; name one of them as model.name"
            " (parts of a split file must be merged, by llama-gguf-split --merge)"
        )
    if found and any(folder.glob("*.safetensors")):
        raise UserError(f"{place}: {folder} holds {found[0].name} and *.safetensors; name the GGUF file as model.name")
    return found[0] if found else None


@dataclass(frozen=True)
class GGUFFile(QuantizedFolder):
    """A GGUF file. Its header is read, and its weights are not.

    Attributes:
        tensors: name of a tensor in the model -> the tensor in the file, as the package gguf describes it.
        names: how transformers names and changes them.
    """

    tensors: Mapping[str, Any]
    names: Names

    @classmethod
    def of(cls, folder: Path, place: str) -> "GGUFFile":
        """Read the header of a file.

        Args:
            folder: the file.
            place: the file's name in errors: a key and its value.

        Raises:
            UserError: it is no complete GGUF file, transformers does not know its architecture, or a tensor has no place.
        """
        stored, architecture = _parsed(folder, place)
        config, names = _mapped(folder, architecture, place)
        if strange := [name for name in stored if name not in names.in_model]:
            raise UserError(f"{place}: transformers has no place for {counted(strange, 'tensors')}")
        tensors = {names.in_model[name]: tensor for name, tensor in stored.items()}
        layers = {}
        for name, tensor in tensors.items():
            if (kind := tensor.tensor_type.name) not in FLOATS:
                fmt = _format(tensor, names, place)
                weight = partial(_weight, name, kind)
                layers[name.removesuffix(".weight")] = StoredLayer(fmt, None, (name,), weight, lambda read: None)
        if not layers:
            raise UserError(f"{place}: {folder} holds floats alone; use a Hugging Face folder of the model with model=hf")
        return cls(folder.parent, place, config, "gguf", layers, dict.fromkeys(tensors, folder), tensors, names)

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
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        if tensor.tensor_type.name not in FLOATS:
            return torch.from_numpy(tensor.data[self.names.order(tensor.name, len(tensor.data))])
        values = self.names.values(tensor.name, dequantize(tensor.data, tensor.tensor_type))
        if values is None:
            raise UserError(f"{self.place}: transformers makes several tensors of {tensor.name}, or one of several")
        return torch.from_numpy(np.array(values, np.float32))

    def weights(self, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `QuantizedFolder.weights`."""
        return by_layer(decoded)

    def tokenizer(self) -> Any:
        """The tokenizer as transformers makes it of the file."""
        from transformers import AutoTokenizer

        (file,) = set(self.files.values())
        return AutoTokenizer.from_pretrained(self.folder, gguf_file=file.name, local_files_only=True)

    def vocabulary(self) -> dict[str, int]:
        """See `QuantizedFolder.vocabulary`. transformers adds tokens beyond those of the file."""
        found: dict[str, int] = self.tokenizer().get_vocab()
        return {token: number for token, number in found.items() if number < self.config["vocab_size"]}


def _begins(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(len(MAGIC))


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


def _parsed(file: Path, place: str) -> tuple[dict[str, Any], str]:
    """Name -> tensor, as the package gguf describes it, and the architecture.

    Raises:
        UserError: the file is no complete GGUF file, or needs more than transformers reads.
    """
    from gguf import GGUFEndian, GGUFReader

    if (begins := _begins(file)) != MAGIC:
        raise UserError(f"{place}: {file} is no GGUF file (it begins with {begins!r}, and not with {MAGIC!r})")
    try:
        reader = GGUFReader(file)
        told = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        architecture = str(told["general.architecture"])
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{place}: {file} is no complete GGUF file that the package gguf can parse ({error})") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise UserError(f"{place}: {file} is big-endian; convert it with gguf-convert-endian")
    if told.get("split.count", 1) > 1:
        raise UserError(f"{place}: {file} is one of {told['split.count']} parts; merge them with llama-gguf-split --merge")
    if told.get(f"{architecture}.{ROPE}", "none") != "none":
        raise UserError(f"{place}: {file} scales its positions ({ROPE}), which transformers does not read from GGUF files")
    return {tensor.name: tensor for tensor in reader.tensors}, architecture


def _mapped(file: Path, architecture: str, place: str) -> tuple[dict[str, Any], Names]:
    """The model's configuration as transformers reads it, and the names of its tensors.

    Raises:
        UserError: transformers does not know the architecture.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config: dict[str, Any] = load_gguf_checkpoint(file)["config"]
        return config, Names.of(architecture, config)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:  # among them NotImplementedError
        raise UserError(f"{place}: {file} is no causal language model that transformers can load ({error})") from error
