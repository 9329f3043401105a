"""ONNX Runtime: a simulated model as an ONNX file with QuantizeLinear, MatMulInteger or MatMulNBits, and its session."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.formats.accepts import Accepts
from sqbench.formats.format import Format
from sqbench.models.functions import Function
from sqbench.quant.layers import Encoded
from sqbench.quant.products import owner_of, placed, products
from sqbench.runtimes.onnx_layers import Static, written
from sqbench.runtimes.onnx_products import name_products
from sqbench.runtimes.runtime import MARK, Executed, Runtime, Session, at_run_time, integer_products, static, unpacked

TITLE = "ONNX Runtime"
PER_CHANNEL, ALONE = integer_products(TITLE), unpacked(TITLE, (None, 16, 32, 64, 128, 256))
STATIC, BETWEEN = static(TITLE, ("after",)), static(TITLE, ("after",), "tensors between layers")
TOKENS = at_run_time(TITLE, {"granularity": ("token",)})
OPSET = 20
CODES = (".codes", ".packed.codes0")  # how the names of codes in a graph end, behind that of their layer
FILE = "model.onnx"


class OnnxRuntime(Runtime):
    """See `Runtime`."""

    name, title, package, file = "onnxruntime", TITLE, "onnxruntime", FILE
    between = BETWEEN

    def accepted(self, inputs: Format | None) -> tuple[Accepts, Accepts | None]:
        if inputs is None:
            return ALONE, None
        return PER_CHANNEL, TOKENS if inputs.dynamic else STATIC

    def write(self, function: Function, parts: Mapping[str, Encoded]) -> bytes:
        """The file's content. It must be smaller than 2 GB, as protobuf asks."""
        module: Any = function.module
        shared: dict[int, nn.Module] = {}
        for path, part in parts.items():
            module.set_submodule(path, written(part, shared))
        points = placed(module)
        for path, point in points.items():
            softmax = point.name.startswith("scores") or isinstance(module.get_submodule(owner_of(path)), nn.Softmax)
            module.set_submodule(path, Static(module.get_submodule(path), as_float=softmax))
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a traced model has constants, and the tracer warns of each
            file = Path(folder) / FILE
            torch.onnx.export(
                module,
                tuple(function.example.values()),
                file,
                dynamo=False,  # the other exporter knows no operations of our own without a further package
                opset_version=OPSET,
                input_names=list(function.example),
                output_names=list(function.outputs),
                dynamic_axes=function.free,
            )
            return name_products(file.read_bytes(), products(points)) if points else file.read_bytes()

    def save(self, graph: bytes, place: Path) -> None:
        (place / self.file).write_bytes(graph)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def start(self, graph: bytes, *, any_rows: bool = False) -> Session:
        return OnnxSession(graph)


class OnnxSession(Session):
    """Computes a graph on the CPU."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime

        with TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Waiting threads spin for work. After a call they would take time from torch, and from another graph of the same model.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            options.log_severity_level = 3  # it warns that the file below is for this processor alone
            options.optimized_model_filepath = str(Path(folder) / FILE)
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            self.names = [one.name for one in self.session.get_inputs()]
            self.readers = _readers(Path(folder) / FILE)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        arrays = (one.contiguous().numpy() for one in inputs)
        return [torch.from_numpy(one) for one in self.session.run(None, dict(zip(self.names, arrays, strict=True)))]

    def executed(self) -> Mapping[str, Executed]:
        return {layer: Executed(f"onnxruntime {name}", name in INTEGERS) for layer, name in self.readers.items()}


INTEGERS = ("MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearConv", "DynamicQuantizeMatMul")


def _readers(path: Path) -> dict[str, str]:
    """Layer or product -> the operation that reads its codes in an optimized graph."""
    import onnx

    nodes = onnx.load(path).graph.node
    named = {node.name.partition(MARK)[0]: node.op_type for node in nodes if MARK in node.name}
    read = ((name, node.op_type) for node in nodes for name in node.input)
    return named | {name.removesuffix(end): operation for name, operation in read for end in CODES if name.endswith(end)}


ONNX_RUNTIME = OnnxRuntime()
