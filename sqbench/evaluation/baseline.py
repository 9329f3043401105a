"""The float model's result, computed once per model and examples, and kept on disk."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype as is_numeric

from sqbench.data import Examples
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.models.base import Model
from sqbench.storage import tensorfile
from sqbench.storage.files import digest

VERSION = 5  # of the cached content; part of the cache key


def reference(model: Model, examples: Examples, name: str, folder: Path, **settings: Any) -> Result:
    """The float model's result of the evaluation `name`, for comparisons with it. `folder` is a cache of such results.

    `settings` are those of the evaluation, and `inputs` among them holds its other inputs. If the float model runs beside every
    point, the result holds only that model, in the dtype that the evaluation compares with.
    """
    evaluation = EVALUATIONS[name]
    if evaluation.beside is not None:
        return Result({}, pd.DataFrame(), in_dtype(model, getattr(torch, evaluation.beside)), None)
    key = {"version": VERSION, **key_of(model, examples, name, settings)}
    chosen = {name: value for name, value in settings.items() if name != "inputs"}

    def compute() -> tensorfile.Content:
        result = evaluation.as_reference(evaluation.run(model, examples, **chosen))
        texts = {column: result.samples[column].tolist() for column in result.samples if not is_numeric(result.samples[column])}
        numbers = [column for column in result.samples if column not in texts]
        tensors = {f"samples/{column}": torch.tensor(result.samples[column].to_numpy()) for column in numbers}
        tensors |= {f"kept/{name}": value for name, value in (result.kept or {}).items()}
        return tensors, {"key": key, "metrics": result.metrics, "columns": list(result.samples), "texts": texts}

    tensors, about = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    texts = about["texts"]
    columns = {name: texts[name] if name in texts else tensors[f"samples/{name}"].numpy() for name in about["columns"]}
    samples = pd.DataFrame(columns)
    kept = {name.removeprefix("kept/"): value for name, value in tensors.items() if name.startswith("kept/")}
    return Result(about["metrics"], samples, model, kept or None)


def key_of(model: Model, examples: Examples, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a float model's result depends on."""
    return {
        "evaluation": name,
        "model": model.prediction_fingerprint,
        "examples": examples.fingerprint(),
        "dtype": str(next(model.module.parameters()).dtype),
        "device": model.device.type,
        **({"settings": dict(settings)} if settings else {}),
    }


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """A copy of the model with its weights in `dtype`, or the model itself if they already are."""
    if next(model.module.parameters()).dtype == dtype:
        return model
    return model.with_module(copy.deepcopy(model.module).to(dtype), model.report)
