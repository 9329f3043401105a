"""Execution of quantized layers with integer codes. A layer that no kernel takes is simulated, and the record names it."""

from sqbench.execution.lowering import BACKENDS, lower

__all__ = ["BACKENDS", "lower"]
