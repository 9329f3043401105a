"""Layers in the integer formats of other tools. Each function takes a float module and returns a converted copy, or work to time.

None of these tools is a dependency of sqbench. The table shows whatever error a call raises.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Work

GROUP = 64
Convert = Callable[[nn.Module], nn.Module]


def body_linears(layer: nn.Module, name: str) -> bool:
    """Whether sqbench quantizes a layer too: every linear layer except the output embedding."""
    return isinstance(layer, nn.Linear) and not name.endswith("lm_head")


def torchao_int8(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """W8A8, dynamic per token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    converted = copy.deepcopy(module).to(dtype)
    quantize_(converted, Int8DynamicActivationInt8WeightConfig(), body_linears)
    return converted


def torchao_int8_compiled(module: nn.Module) -> nn.Module:
    """`torchao_int8` through torch.compile, as the documentation of torchao advises."""
    return torch.compile(torchao_int8(module))  # type: ignore[return-value]


def torchao_int4(module: nn.Module) -> nn.Module:
    """W4A16 in bfloat16, groups of 64, packed for the CPU."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    converted = copy.deepcopy(module).bfloat16()
    quantize_(converted, PrototypeInt4WeightOnlyConfig(group_size=GROUP), body_linears)
    return converted


def torch_dynamic(module: nn.Module) -> nn.Module:
    """W8A8 of torch.ao, dynamic per tensor."""
    from torch.ao.quantization import quantize_dynamic

    names = {name for name, layer in module.named_modules() if body_linears(layer, name)}
    return quantize_dynamic(copy.deepcopy(module), names, dtype=torch.qint8)  # type: ignore[no-any-return]


def quanto(module: nn.Module, weights: str) -> nn.Module:
    """Weight-only quantization of optimum-quanto: qint8 or qint4."""
    from optimum import quanto as tool

    converted = copy.deepcopy(module)
    tool.quantize(converted, weights=getattr(tool, weights), exclude="lm_head")
    tool.freeze(converted)
    return converted


def onnx_runtime(module: nn.Module, images: Tensor, *, integer: bool) -> Work:
    """ONNX Runtime on the exported module: W8A8 dynamic per tensor with weights per channel, or float32."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(module, (images[:1],), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "images"}})
        if integer:
            kinds = ["MatMul", "Gemm"]  # dynamic convolutions are slower than float ones
            quantize_dynamic(path, quantized, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=kinds)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(quantized if integer else path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": images.numpy()})


def on_images(convert: Convert, dtype: torch.dtype = torch.float32) -> Callable[[nn.Module, Tensor], Work]:
    """A function that makes the work of a converted image model."""

    def make(module: nn.Module, images: Tensor) -> Work:
        converted, inputs = convert(module), images.to(dtype)
        return lambda: converted(inputs)

    return make


def bfloat16(module: nn.Module) -> nn.Module:
    """A copy in bfloat16, without integers. It shows the gain of half the bytes alone."""
    return copy.deepcopy(module).bfloat16()


VIT: dict[str, Callable[[nn.Module, Tensor], Work]] = {
    "torch bfloat16 eager": on_images(bfloat16, torch.bfloat16),
    "ONNX Runtime float32": lambda module, images: onnx_runtime(module, images, integer=False),
    "ONNX Runtime int8 dynamic": lambda module, images: onnx_runtime(module, images, integer=True),
    "torch.ao int8 dynamic": on_images(torch_dynamic),
    "torchao int8 dynamic": on_images(torchao_int8),
    "torchao int8 dynamic, compiled": on_images(torchao_int8_compiled),
    "optimum-quanto int8 weights": on_images(lambda module: quanto(module, "qint8")),
}
PREFILL: dict[str, Convert] = {
    "torch bfloat16 eager": bfloat16,
    "torchao int8 dynamic": torchao_int8,
    "torchao int8 dynamic, bfloat16": lambda module: torchao_int8(module, torch.bfloat16),
    "torch.ao int8 dynamic": torch_dynamic,
    "optimum-quanto int8 weights": lambda module: quanto(module, "qint8"),
}
DECODE: dict[str, Convert] = {
    "torch bfloat16 eager": bfloat16,
    "torchao int4 weights, bfloat16": torchao_int4,
    "torch.ao int8 dynamic": torch_dynamic,
    "optimum-quanto int4 weights": lambda module: quanto(module, "qint4"),
}


def reason(error: BaseException) -> str:
    """An error in one short line."""
    text: Any = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:100]
