"""Runtimes that execute quantized models where they are deployed: OpenVINO and ONNX Runtime.

Read `deployment.py` first: a simulated model is written as a graph of the runtime, and computes in it.
"""

from sqbench.runtimes.onnxruntime import ONNX_RUNTIME
from sqbench.runtimes.openvino import OPENVINO
from sqbench.runtimes.runtime import Runtime

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (OPENVINO, ONNX_RUNTIME)}

__all__ = ["RUNTIMES", "Runtime"]
