"""How near a model in a runtime is to its simulation, and which layers it executes otherwise than asked."""

import torch

from sqbench.models.base import Model


@torch.no_grad()
def apart(a: Model, b: Model, x: torch.Tensor) -> float:
    """Largest difference of two models' predictions, relative to the largest prediction."""
    wanted = b.forward(x)
    return float((a.forward(x) - wanted).abs().max() / wanted.abs().max())


def otherwise(model: Model) -> dict[str, str]:
    """Layer -> the reason, for layers that a runtime executes otherwise than asked."""
    return {layer: entry["reason"] for entry in model.report["execution"] for layer in entry["layers"] if entry["reason"]}
