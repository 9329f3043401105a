"""The formats that kernels accept, as data. A layer of any other format is simulated."""

from sqbench.formats.accepts import Accepts
from sqbench.formats.scale import FLOAT32, Scale

BITS = range(2, 9)
EVERY_DTYPE = (FLOAT32, Scale("float16"), Scale("bfloat16"))
ROUNDED = ("qmax", "half_range")  # conventions of inputs
SYMMETRIC = (*ROUNDED, "signed")  # and of weights, for kernels that multiply by the scale, whatever its sign

# A code of fewer bits is also a code of 8 bits, and every dtype of scales is read as float32.
CODED_WEIGHTS = Accepts(
    "8-bit products take weights",
    {"bits": BITS, "granularity": ("tensor", "channel"), "convention": SYMMETRIC, "scale": EVERY_DTYPE},
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
