"""The formats that kernels accept, as data. A layer of any other format is simulated."""

from collections.abc import Collection, Mapping
from typing import Any

from sqbench.formats.accepts import Accepts
from sqbench.formats.format import TIES
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
