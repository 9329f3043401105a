"""The float model's result, computed once per model, text and windows, and kept on disk."""

from pathlib import Path

import pandas as pd
import torch

from sqbench import tensorfile
from sqbench.data import Windows
from sqbench.evaluation.perplexity import Result, as_reference, perplexity
from sqbench.models.language import LanguageModel
from sqbench.storage import digest

VERSION = 1  # of what is kept; part of the cache key


def reference(model: LanguageModel, windows: Windows, folder: Path) -> Result:
    """The float model's result with what its head reads, from `folder` if it is there."""
    key = {
        "version": VERSION,
        "model": model.fingerprint,
        "windows": digest(windows.evaluation.tolist()),
        "dtype": str(next(model.module.parameters()).dtype),
        "device": model.device.type,
    }

    def compute() -> tensorfile.Content:
        result = as_reference(perplexity(model, windows))
        tensors = {f"samples/{name}": torch.tensor(result.samples[name].to_numpy()) for name in result.samples}
        if result.hidden is not None:
            tensors["hidden"] = result.hidden
        return tensors, {"key": key, "metrics": result.metrics}

    tensors, about = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    columns = {name.removeprefix("samples/"): value.numpy() for name, value in tensors.items() if name.startswith("samples/")}
    ordered = [name for name in ("window", "tokens", "nll", "nll_fp", "kl", "agreement") if name in columns]
    samples = pd.DataFrame({name: columns[name] for name in ordered})
    return Result(about["metrics"], samples, model, tensors.get("hidden"))
