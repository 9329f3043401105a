"""Tests that need the native kernels are skipped, with the reason, where these cannot be compiled or the CPU is too old."""

import pytest

from sqbench.execution import compiler

needs_kernels = pytest.mark.skipif(compiler.unavailable() is not None, reason=f"no native kernels: {compiler.unavailable()}")
BACKENDS = ("sim", pytest.param("int", marks=needs_kernels))
