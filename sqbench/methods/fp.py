"""The float model itself, as a method."""

from dataclasses import dataclass
from typing import ClassVar

from sqbench.methods.base import Method, register


@register("fp")
@dataclass(frozen=True)
class Fp(Method):
    """No quantization, whatever `bits` says."""

    is_float: ClassVar[bool] = True
