"""Round to nearest: each value goes to the closest code. Ranges are the tensor's own."""

from dataclasses import dataclass

from sqbench.methods.base import Method, register


@register("rtn")
@dataclass(frozen=True)
class Rtn(Method):
    """Weights round to nearest. The natural scheme is W4A16, groups of 64. This is the baseline of every weight-only method."""
