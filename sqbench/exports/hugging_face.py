"""Proof by transformers with the package compressed-tensors: it loads a folder and predicts the same."""

import json
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.data import Examples
from sqbench.errors import UserError, counted
from sqbench.exports.proof import Proof, compared
from sqbench.models.base import Model
from sqbench.models.encoder import EncoderModel
from sqbench.models.language import LanguageModel
from sqbench.models.pooling import pooling_of

M = TypeVar("M", bound=LanguageModel | EncoderModel)
ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError)  # of libraries that load a folder
WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys")  # transformers goes on with random or with fewer tensors
ONLY_BFLOAT16 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")  # transformers decodes these to bfloat16


def prove(simulated: Model, folder: Path, examples: Examples) -> Proof:
    """Load an exported folder with transformers, and compare it on all evaluation examples.

    Raises:
        UserError: transformers cannot load the folder.
    """
    assert isinstance(simulated, LanguageModel)
    ours, dtype = simulated, next(simulated.module.parameters()).dtype
    if _configuration(folder)["format"] in ONLY_BFLOAT16:
        dtype, read = torch.bfloat16, QuantizedFolder.of(folder, f"out={folder}")
        ours = read.load(simulated.device, name=simulated.name, fingerprint=simulated.fingerprint, dtype="bfloat16")
    theirs, program = _loaded(folder, dtype, simulated)
    return compared(ours, theirs, examples, program=program, dtype=str(dtype).removeprefix("torch."))


def _configuration(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says of quantization."""
    told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    return told


def loaded(folder: Path, dtype: torch.dtype, like: M, **options: Any) -> M:
    """A folder as transformers loads it by itself. `like` has its tokenizer. Errors are those of transformers.

    An encoder has the pooling that the folder tells.
    """
    from transformers import AutoModelForCausalLM

    library: Any = AutoModelForCausalLM if isinstance(like, LanguageModel) else type(like.module)
    with redirect_stderr(StringIO()):  # progress bars and a report of the tensors
        module, told = library.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options)
    if wrong := sorted(map(str, set().union(*(told[key] for key in WRONG)))):
        raise ValueError(counted(wrong, "tensors are missing, left over or of another shape"))
    module.eval().requires_grad_(False)
    found = {"module": module, "fingerprint": f"{like.fingerprint}-exported", "report": None}
    if isinstance(like, EncoderModel):
        found["pooling"] = pooling_of(folder, f"out={folder}")
    return replace(like, **found)


def _loaded(folder: Path, dtype: torch.dtype, like: LanguageModel) -> tuple[LanguageModel, str]:
    """A folder as other programs load it, and which ones."""
    both = f"transformers {version('transformers')} with compressed-tensors {version('compressed-tensors')}"
    try:
        return loaded(folder, dtype, like), both
    except ERRORS as error:
        found = QuantizedFolder.of(folder, f"out={folder}")
        if any(one.activation is not None for one in found.layers.values()):
            raise UserError(
                f"out={folder}: is written, and transformers cannot load it ({error}); verify=false skips this"
            ) from error
        alone = f"compressed-tensors {version('compressed-tensors')} alone, whose weights transformers cannot load"
        return found.floating(unpacked_weights(found), dtype, name=like.name, fingerprint=f"{like.fingerprint}-exported"), alone


def unpacked_weights(found: QuantizedFolder) -> dict[str, Tensor]:
    """The weights of a folder as the package compressed-tensors itself unpacks them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    told = _configuration(found.folder)
    schemes = QuantizationConfig.model_validate(told).config_groups.values()
    weights = {}
    for layer, one in found.layers.items():
        scheme = next(scheme for scheme in schemes if layer in scheme.targets or "Linear" in scheme.targets)
        local = {name.removeprefix(f"{layer}."): found.read(name) for name in one.names}
        weights[layer] = BaseCompressor.get_value_from_registry(scheme.format or told["format"]).decompress(local, scheme)["weight"]
    return weights
