"""The output of norms, as far as their parameters determine it."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from sqbench.models.base import Model
from sqbench.models.batchnorm import after_fold, is_batchnorm


def writers(model: Model) -> dict[str, Callable[[Tensor], Tensor]]:
    """Site -> the map from normalised values [..., channels] to its norm's output. Sites that no norm writes are left out."""
    offsets = {group.source: group.offset for group in model.topology.groups}
    norms = {site: (name, model.module.get_submodule(name)) for site, name in model.topology.norms.items()}
    return {site: partial(_written, norm, offsets.get(name, 0.0)) for site, (name, norm) in norms.items()}


def _written(norm: nn.Module, offset: float, x: Tensor) -> Tensor:
    """Apply a norm's weight and bias, and the activation of a BatchNorm that holds one."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, Tensor)
    x = x * (weight.float() + offset)
    x = x if bias is None else x + bias.float()
    return after_fold(norm)(x) if is_batchnorm(norm) else x
