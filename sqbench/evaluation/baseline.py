"""The float model's result, computed once per model and examples, and kept on disk."""

import copy
from pathlib import Path

import pandas as pd
import torch

from sqbench import tensorfile
from sqbench.data import Examples
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.models.base import Model
from sqbench.storage import digest

VERSION = 3  # of what is kept; part of the cache key


def reference(model: Model, examples: Examples, name: str, folder: Path) -> Result:
    """The float model's result of the evaluation `name`, as others are compared with it, from `folder` if it is there.

    Where it is to run beside every point, only the float model itself, in the dtype that the evaluation compares with.
    """
    evaluation = EVALUATIONS[name]
    if evaluation.beside is not None:
        return Result({}, pd.DataFrame(), in_dtype(model, getattr(torch, evaluation.beside)), None)
    key = {
        "version": VERSION,
        "evaluation": name,
        "model": model.prediction_fingerprint,
        "examples": examples.fingerprint(),
        "dtype": str(next(model.module.parameters()).dtype),
        "device": model.device.type,
    }

    def compute() -> tensorfile.Content:
        result = evaluation.as_reference(evaluation.run(model, examples))
        tensors = {f"samples/{column}": torch.tensor(result.samples[column].to_numpy()) for column in result.samples}
        tensors |= {f"kept/{name}": value for name, value in (result.kept or {}).items()}
        return tensors, {"key": key, "metrics": result.metrics, "columns": list(result.samples)}

    tensors, about = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    samples = pd.DataFrame({column: tensors[f"samples/{column}"].numpy() for column in about["columns"]})
    kept = {name.removeprefix("kept/"): value for name, value in tensors.items() if name.startswith("kept/")}
    return Result(about["metrics"], samples, model, kept or None)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """The same weights in another float format; the model itself where they are in it already."""
    if next(model.module.parameters()).dtype == dtype:
        return model
    return model.with_module(copy.deepcopy(model.module).to(dtype), model.report)
