"""The measured damage of every group of layers, for mixed precision. It is shared by points through a folder."""

from pathlib import Path

import torch

from sqbench.models import Model
from sqbench.parts.task import Task
from sqbench.pipeline.mixed import measure
from sqbench.storage import tensorfile
from sqbench.storage.files import digest


def damage(task: Task, run: Model, folder: Path) -> dict[str, float]:
    """Name of a group of layers -> its damage at the width of the scheme.

    Args:
        run: the model of the task on other kernels. The damage is measured on it.
        folder: a cache for the damage.
    """
    model, scheme, sample = task.model, task.scheme, task.statistics.sample

    def compute() -> tensorfile.Content:
        found = measure(task, run)
        return {"damage": torch.tensor(list(found.values()), dtype=torch.float64)}, key

    parameter = next(model.module.parameters())
    key = {
        "version": 1,
        "model": model.prediction_fingerprint,
        "dtype": str(parameter.dtype),
        "device": parameter.device.type,
        "sample": [tensorfile.fingerprint({"sample": sample}), list(sample.shape)],
        "weights": None if scheme.weights is None else scheme.weights.as_dict(),
        "groups": task.topology.siblings,
    }
    tensors, _ = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    return dict(zip(task.topology.siblings, tensors["damage"].tolist(), strict=True))
