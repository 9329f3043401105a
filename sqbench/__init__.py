"""sqbench measures what it costs to quantize a model.

import sqbench

model, windows = sqbench.load("model=smollm2_135m")
statistics = sqbench.calibrate(model, windows.calibration)
baseline = sqbench.evaluate(model, windows)
quantized = sqbench.quantize(model, statistics, "awq", bits="w4a16")
print(sqbench.evaluate(quantized, windows, baseline).metrics)
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["allocate", "calibrate", "configure", "evaluate", "load", "quantize", "save", "train"]


def __getattr__(name: str) -> Any:
    """Import the verbs on first use, because command lines that only read records need no torch."""
    if name in __all__:
        from sqbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'sqbench' has no attribute {name!r}")
