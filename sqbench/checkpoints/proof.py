"""Proof of an export by a program that is not ours: transformers loads the folder and predicts the same."""

import json
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.checkpoints.folder import QuantizedFolder
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.models.language import LanguageModel

ONLY_BFLOAT16 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")  # transformers decodes these to bfloat16
RESAMPLES, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Proof:
    """How a foreign program's predictions on the evaluation examples differ from the simulated model's.

    Attributes:
        program: the program and its versions.
        dtype: in which both computed.
        largest: largest difference of a logit, and `scale` the largest logit.
        agreement: share of tokens whose most likely prediction is the same.
        metrics: of the foreign program.
        change: of each metric against the simulated model's, with interval and test.
    """

    program: str
    dtype: str
    largest: float
    scale: float
    agreement: float
    metrics: dict[str, float]
    change: dict[str, Any]

    def __str__(self) -> str:
        change = self.change["perplexity"]
        told = (
            f"{self.program} in {self.dtype}",
            f"largest difference of a logit {self.largest:.3g} of {self.scale:.3g}",
            f"the same most likely token in {100 * self.agreement:.2f} %",
            f"perplexity {self.metrics['perplexity']:.6g} ({change['value']:+.3g} [{change['low']:.3g}, {change['high']:.3g}])",
        )
        return f"{told[0]}: {', '.join(told[1:])}"


@torch.no_grad()
def prove(simulated: LanguageModel, folder: Path, windows: Windows, kind: str) -> Proof:
    """Load an exported folder with transformers, and compare it on all evaluation windows.

    Args:
        simulated: the model that was exported. It is simulated, not executed in integers.
        kind: the `format` of the exported quantization_config.

    Raises:
        UserError: transformers cannot load the folder.
    """
    ours, dtype = simulated, next(simulated.module.parameters()).dtype
    if kind in ONLY_BFLOAT16:
        dtype, read = torch.bfloat16, QuantizedFolder.of(folder, f"out={folder}")
        ours = read.load(simulated.device, name=simulated.name, fingerprint=simulated.fingerprint, dtype="bfloat16")
    theirs, program = _loaded(folder, dtype, simulated)
    perplexity = EVALUATIONS["perplexity"]
    reference: Result = perplexity.run(ours, windows, None)
    result = perplexity.run(theirs, windows, reference)
    largest = scale = 0.0
    for ids in windows.evaluation.split(1):
        own, other = ours.forward(ids).float(), theirs.forward(ids).float()
        largest, scale = max(largest, float((own - other).abs().max())), max(scale, float(own.abs().max()))
    changes = perplexity.differences(result.samples, RESAMPLES, LEVEL)
    return Proof(
        program,
        str(dtype).removeprefix("torch."),
        largest,
        scale,
        result.metrics["agreement"],
        result.metrics,
        {name: difference.as_dict() for name, difference in changes.items()},
    )


def _loaded(folder: Path, dtype: torch.dtype, like: LanguageModel) -> tuple[LanguageModel, str]:
    """A folder as other programs load it, and which ones."""
    from transformers import AutoModelForCausalLM

    both = f"transformers {version('transformers')} with compressed-tensors {version('compressed-tensors')}"
    try:
        with redirect_stderr(StringIO()):  # progress bars and a report of the tensors
            module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        found = QuantizedFolder.of(folder, f"out={folder}")
        if any(one.activation is not None for one in found.layers.values()):
            raise UserError(
                f"out={folder}: is written, and transformers cannot load it ({error}); verify=false skips this"
            ) from error
        alone = f"compressed-tensors {version('compressed-tensors')} alone, whose weights transformers cannot load"
        return found.floating(unpacked_weights(found), dtype, name=like.name, fingerprint=f"{like.fingerprint}-exported"), alone
    module.eval().requires_grad_(False)
    return LanguageModel(module, like.name, f"{like.fingerprint}-exported", tokenizer=like.tokenizer), both


def unpacked_weights(found: QuantizedFolder) -> dict[str, Tensor]:
    """The weights of a folder as the package compressed-tensors itself unpacks them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    told = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    schemes = QuantizationConfig.model_validate(told).config_groups.values()
    weights = {}
    for layer, one in found.layers.items():
        scheme = next(scheme for scheme in schemes if layer in scheme.targets or "Linear" in scheme.targets)
        local = {name.removeprefix(f"{layer}."): found.read(name) for name in one.names}
        weights[layer] = BaseCompressor.get_value_from_registry(scheme.format or told["format"]).decompress(local, scheme)["weight"]
    return weights
