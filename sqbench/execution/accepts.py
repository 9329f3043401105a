"""The formats that a kernel accepts, as data. What nobody declared is refused, so that a layer of a new format is simulated."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqbench.formats.format import TIES, Format
from sqbench.formats.scale import FLOAT32, Scale

BITS = range(2, 9)
EVERY_DTYPE = (FLOAT32, Scale("float16"), Scale("bfloat16"))
ROUNDED = ("qmax", "half_range")  # conventions of inputs
# Rules by which codes of weights were found. A kernel that multiplies by the scale, whatever its sign, takes them all.
WEIGHT_RULES: Mapping[str, Collection[Any]] = {
    "convention": (*ROUNDED, "signed"),
    "scale": (*EVERY_DTYPE, Scale("float16", times="unrounded_reciprocal")),
    "ties": TIES,
}


@dataclass(frozen=True)
class Multiples:
    """The multiples of a size, and null."""

    size: int

    def __contains__(self, value: object) -> bool:
        return value is None or (isinstance(value, int) and value % self.size == 0)

    def __str__(self) -> str:
        return f"of a multiple of {self.size}"


@dataclass(frozen=True)
class Accepts:
    """A set of formats.

    Attributes:
        who: the kernel and what it reads, as the beginning of a sentence: "8-bit products take weights".
        values: field of `Format` -> the values that are in the set. A field without an entry must have its default, and so must a
            field that `Format` gets one day.
    """

    who: str
    values: Mapping[str, Collection[Any] | Multiples] = field(default_factory=dict)

    def refusal(self, fmt: Format) -> str | None:
        """The reason why a format is not in the set, as a sentence. None if it is."""
        for one in fields(fmt):
            value, allowed = getattr(fmt, one.name), self.values.get(one.name, (one.default,))
            if value not in allowed:
                return f"{self.who} with {one.name} {_listed(allowed)}, not {_word(value)}"
        return None


def _listed(allowed: Collection[Any] | Multiples) -> str:
    if isinstance(allowed, Multiples):
        return str(allowed)
    if isinstance(allowed, range) and len(allowed) > 1:
        return f"{allowed[0]} to {allowed[-1]}"
    return " or ".join(map(_word, allowed))


def _word(value: Any) -> str:
    """A value as people type it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


# ---- What several kernels share ----------------------------------------------------------------------------------------------

# A code of fewer bits is also a code of 8 bits, and every dtype of scales is read as float32.
CODED_WEIGHTS = Accepts(
    "8-bit products take weights",
    {"bits": BITS, "granularity": ("tensor", "channel"), **WEIGHT_RULES},
)
CODED_INPUTS = Accepts(
    "8-bit products take inputs",
    {
        "bits": BITS,
        "symmetric": (True, False),
        "granularity": ("tensor", "token"),
        "dynamic": (True, False),
        "convention": ROUNDED,
        "scale": EVERY_DTYPE,
    },
)
# Rounding in one pass over memory.
STATIC = Accepts(
    "one-pass rounding takes static ranges",
    {"bits": BITS, "symmetric": (True, False), "convention": ROUNDED, "scale": EVERY_DTYPE},
)
ROWS = Accepts(
    "one-pass rounding takes dynamic ranges",
    {"bits": BITS, "symmetric": (True, False), "granularity": ("token",), "dynamic": (True,), "convention": ROUNDED},
)
