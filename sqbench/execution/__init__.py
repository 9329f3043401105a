"""Execution: quantized layers computed with integer codes where a kernel takes them, in simulation, and named, where none does."""

from sqbench.execution.lowering import BACKENDS, lower

__all__ = ["BACKENDS", "lower"]
