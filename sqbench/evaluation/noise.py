"""The rounding noise of a point: the spread of its metrics when the model's inputs change by a millionth.

Such a change stands for the differences in the last digits between processors, kernels and thread counts. A float model's metrics
move by as little. A quantizer turns part of the change into whole steps, because some values lie on the edge between two codes.
Later layers amplify these steps in the same way. A difference between two points that is smaller than this noise means nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sqbench.data import Examples
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.evaluation.baseline import key_of
from sqbench.models.base import Model
from sqbench.storage import tensorfile
from sqbench.storage.files import digest

RELATIVE = 1e-6  # of each value: eight steps of float32, the error of a sum in another order
VERSION = 1  # of the float model's cached content

Change = Callable[[Tensor], Tensor]


def _embeddings(model: Model, change: Change) -> RemovableHandle:
    handle: RemovableHandle = model.module.get_input_embeddings().register_forward_hook(lambda layer, args, out: change(out))
    return handle


# Kind of data -> function that changes the first float tensor of a model: the embeddings of tokens, or the pixels of images.
ENTRANCES: dict[str, Callable[[Model, Change], RemovableHandle]] = {
    "text": _embeddings,
    "sentences": _embeddings,
    "images": lambda model, change: model.module.register_forward_pre_hook(lambda layer, args: (change(args[0]), *args[1:])),
}


def measure(
    name: str,
    settings: Mapping[str, Any],
    examples: Examples,
    floats: Model,
    float_result: Result,
    quantized: Model | None,
    runs: int,
    folder: Path,
) -> dict[str, Any]:
    """The spread of every metric over `runs` evaluations. Each run has its own change, the same for both models.

    Args:
        settings: those of the evaluation. `inputs` holds its other inputs, as for `baseline.reference`.
        quantized: the point's model, or None for a point of the float model.
        folder: a cache for the float model's metrics.

    Returns:
        `runs`, `relative`, and three parts: `baseline` (the float model), `metrics` (the point) and `delta` (their difference, run
        by run). Each part has `std` (over the runs, n - 1), `min` and `max` by metric.
    """

    chosen = {key: value for key, value in settings.items() if key != "inputs"}

    def every(model: Model) -> dict[str, list[float]]:
        found = []
        for run in range(runs):
            with disturbed(model, run):
                found.append(EVALUATIONS[name].run(model, examples, float_result, **chosen).metrics)
        return {metric: [one[metric] for one in found] for metric in found[0]}

    key = {**key_of(floats, examples, name, settings), "version": VERSION, "noise": runs, "relative": RELATIVE}

    def compute() -> tensorfile.Content:
        return {metric: torch.tensor(values, dtype=torch.float64) for metric, values in every(floats).items()}, {"key": key}

    tensors, _ = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    base = {metric: values.tolist() for metric, values in tensors.items()}
    own = base if quantized is None else every(quantized)
    change = {metric: [a - b for a, b in zip(own[metric], base[metric], strict=True)] for metric in own.keys() & base.keys()}
    told = {"metrics": own, "baseline": base, "delta": change}
    spreads = {part: {metric: _spread(values) for metric, values in found.items()} for part, found in told.items()}
    return {"runs": runs, "relative": RELATIVE, **spreads}


@contextmanager
def disturbed(model: Model, run: int) -> Iterator[None]:
    """Change every value that enters a model by `RELATIVE` times a normal number. The run's number alone seeds the draw.

    In a narrower dtype, which has wider steps, the change is one relative step (eps) times the normal number. Batches of the same
    shape change alike, so the number and order of the model's calls do not matter.
    """

    def change(values: Tensor) -> Tensor:
        share = max(RELATIVE, torch.finfo(values.dtype).eps)
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(run))
        return (values.float() * (1 + share * noise.to(values.device))).to(values.dtype)

    handle = ENTRANCES[model.kind](model, change)
    try:
        yield
    finally:
        handle.remove()


def _spread(values: list[float]) -> dict[str, float]:
    moved = min(values) < max(values)  # otherwise std would only be the rounding of the mean
    return {"std": float(np.std(values, ddof=1)) if moved else 0.0, "min": min(values), "max": max(values)}
