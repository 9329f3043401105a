"""Folding BatchNorm into the convolution before it. At inference BatchNorm is an affine map per output channel."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sqbench.quant.access import set_weight, weight_of


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics that can be folded."""
    return isinstance(module, _BatchNorm) and module.running_var is not None


def batchnorm_scale(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """gamma / sigma and beta - mu gamma / sigma (Jacob et al., 2018, eq. 14), [channels] each."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)  # half precision would round twice
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def after_fold(norm: nn.Module) -> nn.Module:
    """The rest of a BatchNorm module without its affine map. timm's BatchNorms hold an activation and a drop layer."""
    rest = {name: part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)}
    return nn.Sequential(OrderedDict(rest)) if rest else nn.Identity()  # other code looks for these names


@torch.no_grad()
def fold_batchnorm(module: nn.Module, layer: str, norm: str) -> None:
    """Fold the BatchNorm named `norm` into the layer named `layer`. Parameters are replaced, never written to."""
    before, after = module.get_submodule(layer), module.get_submodule(norm)
    scale, shift = batchnorm_scale(after)
    weight = weight_of(before)
    set_weight(before, (weight * scale.unsqueeze(1)).to(weight.dtype))
    bias = before.bias
    assert bias is None or isinstance(bias, Tensor)
    shift = shift if bias is None else shift + bias.detach() * scale
    before.bias = nn.Parameter(shift.detach().to(weight.dtype), requires_grad=False)
    module.set_submodule(norm, after_fold(after))
