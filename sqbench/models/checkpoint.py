"""The weights of a model folder. They are compared with the model in its configuration before any weight is read.

Names and shapes come from the headers of the files. transformers itself loads empty tensors of these shapes. This shows what it
converts while it loads (experts in one tensor, names of older releases, the base model's prefix), and which weights are tied.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sqbench.errors import UserError, counted
from sqbench.models.folder import Stored, read_config, stored, weight_files

INSTEAD = "use a folder that save_pretrained wrote with this config.json"
Sources = dict[str, dict[str | None, list[str]]]  # tensor of the model -> conversion (None: as it is) -> names in the files


@dataclass(frozen=True)
class Origin:
    """The place where a tensor of a model is stored: a file, its name there, and the tensor's dtype in the model."""

    file: Path
    name: str
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor as stored. It is mapped into memory, not copied."""
        with safe_open(self.file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
            return tensor


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors in a folder in Hugging Face layout. They are read on request.

    Attributes:
        origins: parameter or buffer of the model -> where it is stored. Only tensors that are stored as they are have an origin.
        computed: buffer that the model computes itself -> its dtype in the model.
    """

    origins: dict[str, Origin]
    computed: dict[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, module: Any, dtype: torch.dtype, place: str, **options: Any) -> "Checkpoint":
        """Compare the *.safetensors of a folder with a transformers model. The model's own weights may be on the meta device.

        Args:
            dtype: the dtype that the model is to have.
            place: the folder's name in errors: a key and its value.
            options: what the model's class was built with besides its configuration.

        Raises:
            UserError: a tensor is missing, is unexpected, has another shape, comes twice or holds no floating-point numbers, or
                the configuration ties tensors that differ.
        """
        tensors = stored(weight_files(folder, read_config(folder, place), place), place)
        sources = _sources(module, tensors)
        filled = _dry(module, dtype, tensors, sources, place, options)
        expected: dict[str, Tensor] = filled.state_dict()
        wrong = {
            "tensors in each other's place": [name for parts in sources.values() for name in _overlapping(parts)],
            "weights that are no floats": [
                name
                for target, parts in sources.items()
                if target in expected and expected[target].is_floating_point()
                for name in chain(*parts.values())
                if not tensors[name].is_wide_float
            ],
        }
        if said := [counted(names, what) for what, names in wrong.items() if names]:
            raise UserError(f"{place}: its files hold {'; '.join(said)}; {INSTEAD}")
        whole = {target: parts[None][0] for target, parts in sources.items() if None in parts and target in expected}
        origins = {target: Origin(tensors[name].file, name, expected[target].dtype) for target, name in whole.items()}
        both = [(a, b) for a, b in module.all_tied_weights_keys.items() if a in origins and b in origins]
        if unlike := [a for a, b in both if not torch.equal(origins[a].read(), origins[b].read())]:
            raise UserError(
                f"{place}: config.json ties weights that differ in its files: {counted(unlike, 'of them')};"
                " use tie_word_embeddings=false in config.json if the model was trained so"
            )
        return cls(origins, {name: buffer.dtype for name, buffer in filled.named_buffers() if name not in origins})

    def load(self, names: Iterable[str], into: nn.Module, device: torch.device) -> None:
        """Replace parameters and buffers by stored tensors. On a CPU and in the model's dtype these are mapped, not copied."""
        for name in names:
            tensor = self.origins[name].read().to(device, self.origins[name].dtype)
            owner, _, leaf = name.rpartition(".")
            module = into.get_submodule(owner)
            setattr(module, leaf, tensor if leaf in module._buffers else nn.Parameter(tensor, requires_grad=False))


def _sources(module: Any, names: Iterable[str]) -> Sources:
    """The stored tensors that transformers makes each tensor of the model from."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping, known = get_model_conversion_mapping(module), module.state_dict()
    merges = [step for step in mapping if isinstance(step, WeightConverter)]
    renames = [step for step in mapping if not isinstance(step, WeightConverter)]
    found: Sources = {}
    for name in names:
        target, conversion = rename_source_key(name, renames, merges, module.base_model_prefix, known)
        if target not in known and name in known:
            target, conversion = name, None
        found.setdefault(target, {}).setdefault(conversion, []).append(name)
    return found


def _overlapping(parts: Mapping[str | None, list[str]]) -> list[str]:
    """Names of stored tensors that transformers would silently drop or use in another order.

    Names of one conversion that differ only in a number are a list. It must count from 0 without a gap.
    """
    if None in parts:
        names = list(chain(*parts.values()))
        return names if len(names) > 1 else []
    found = []
    for names in parts.values():
        numbers = [[int(word) for word in name.split(".") if word.isdecimal()] for name in names]
        masked = {re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name) for name in names}
        running = [sorted(column) for column in zip(*numbers, strict=False) if len(set(column)) > 1]
        if len(names) > 1 and (len(masked) > 1 or running != [list(range(len(names)))]):
            found += names
    return found


def _dry(
    module: Any, dtype: torch.dtype, tensors: Mapping[str, Stored], sources: Sources, place: str, options: Mapping[str, Any]
) -> Any:
    """The model as transformers would load it, with tensors that hold no data. No weight is read.

    Raises:
        UserError: a tensor is missing, is unexpected or has another shape.
    """
    from transformers.utils import logging

    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    how = {"config": module.config, "dtype": dtype, "device_map": "meta", "ignore_mismatched_sizes": True, **options}
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the errors below replace its report
    try:
        with torch.random.fork_rng(devices=[]):
            loaded, info = type(module).from_pretrained(None, state_dict=empty, output_loading_info=True, **how)
    except RuntimeError as error:
        uneven = [name for name, parts in sources.items() if len({len(names) for names in parts.values()}) > 1]
        of = f": {counted(uneven, 'made from lists of unequal length')}" if uneven else f" ({str(error).splitlines()[0]})"
        raise UserError(f"{place}: transformers cannot convert its tensors{of}; {INSTEAD}") from error
    finally:
        logging.set_verbosity(before)
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = [f"{name} {tuple(ours)} for {tuple(theirs)}" for name, ours, theirs in sorted(info["mismatched_keys"])]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if said := [counted(names, what) for what, names in wrong.items() if names]:
        raise UserError(
            f"{place}: its tensors are not those of the {type(module).__name__} in its config.json: {'; '.join(said)};"
            f" {_remedy(module, missing, unexpected)}"
        )
    return loaded


def _remedy(module: Any, missing: list[str], unexpected: list[str]) -> str:
    """The end of an error message: what would work instead."""
    for name in missing:
        for other in unexpected:
            prefix = other.removesuffix(name)
            if prefix != other and [f"{prefix}{one}" for one in missing] == unexpected:
                return f"use the same names without {prefix}"
    embedding = module.get_output_embeddings()
    head = {name for name, part in module.named_parameters() if embedding is not None and part is embedding.weight}
    if not unexpected and set(missing) == head:
        return "use tie_word_embeddings=true in config.json if the model was trained with its head tied to its embedding"
    return INSTEAD
