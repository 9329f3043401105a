"""Weights that no format holds, and scales that their dtype does not hold."""

from torch import Tensor

from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor


def check_weight(name: str, weight: Tensor) -> None:
    """Raise UserError if a weight has a value that no format can hold."""
    if not bool(weight.isfinite().all()):
        raise UserError(
            f"{name}: its weight has {int((~weight.isfinite()).sum())} values that are NaN or infinite; no format holds them"
        )


def check_scales(name: str, encoded: EncodedTensor) -> None:
    """Raise UserError if a scale is too large for its dtype."""
    if not bool(encoded.scale.isfinite().all()):
        fmt = encoded.format
        raise UserError(
            f"{name}: a scale of {fmt} is too large for {fmt.scale.dtype}; use scale.dtype=float32, or leave the layer in float"
            f" with model.keep=[{name}]"
        )
