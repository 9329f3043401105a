"""Round to nearest: each value goes to the closest code, ranges are the tensor's own."""

from dataclasses import dataclass

from sqbench.methods.base import Method, register


@register("rtn")
@dataclass(frozen=True)
class Rtn(Method):
    """Weights round to nearest in their natural scheme (W4A16, groups of 64); the baseline of every weight-only method."""
