"""OpenVINO: a simulated model as its graph, with the codes of weights as they are stored, and the session that runs it."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.formats.accepts import Accepts, Multiples
from sqbench.formats.format import Format
from sqbench.quant.access import kind_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, Shared
from sqbench.runtimes.runtime import STORED, SYMMETRIC, WIDTHS, Executed, Runtime, Session

PER_CHANNEL = Accepts(
    "8-bit products of OpenVINO take weights",
    {"bits": WIDTHS, "granularity": ("tensor", "channel"), "convention": SYMMETRIC, "scale": STORED},
)
ALONE = Accepts(
    "OpenVINO unpacks weights",
    {
        "bits": WIDTHS,
        "symmetric": (True, False),
        "granularity": ("tensor", "channel", "group"),
        "group_size": Multiples(1),
        "convention": SYMMETRIC,
        "range": ("with_zero", "own"),
        "shift": ("after", "before"),
        "scale": STORED,
    },
)
STATIC = Accepts(
    "OpenVINO rounds inputs",
    {"symmetric": (True, False), "convention": ("qmax", "half_range"), "shift": ("after", "before")},
)
TOKENS = Accepts("OpenVINO rounds inputs at run time", {"granularity": ("token",), "dynamic": (True,)})
PRODUCTS = ("FullyConnected", "Convolution", "MatMul")  # types of nodes
INTEGERS = ("u8", "i8")
WHOLE_ROW = 2**64 - 1  # as the size of a group of inputs. The default is 32, also for inputs that must stay in float


class OpenVino(Runtime):
    """See `Runtime`. Inputs with static ranges become FakeQuantize, and weights the pattern Convert, Subtract, Multiply."""

    name, title, package, file = "openvino", "OpenVINO", "openvino", "openvino_model.xml"

    def accepted(self, inputs: Format | None) -> tuple[Accepts, Accepts | None]:
        if inputs is None:
            return ALONE, None
        return (ALONE, TOKENS) if inputs.dynamic else (PER_CHANNEL, STATIC)

    def write(self, module: nn.Module, example: Tensor, layers: Mapping[str, QuantLayer]) -> Any:
        import openvino

        quantizers: dict[int, nn.Module] = {}
        for path, layer in layers.items():
            inputs = layer.activation
            rounded = None
            if isinstance(inputs, ActivationQuantizer) and inputs.static is not None:
                rounded = quantizers.setdefault(id(inputs), Rounded(inputs))
            module.set_submodule(path, Written(layer.simulated(), rounded))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a traced model has constants, and the tracer warns of each
            graph = openvino.convert_model(module, example_input=example)
        _store_codes(graph, layers)
        dynamic = any(isinstance(one.activation, ActivationQuantizer) and one.activation.fmt.dynamic for one in layers.values())
        graph.set_rt_info(str(WHOLE_ROW if dynamic else 0), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        return graph

    def save(self, graph: Any, place: Path) -> None:
        import openvino

        openvino.save_model(graph, place / self.file, compress_to_fp16=False)

    def read(self, path: Path) -> Any:
        import openvino

        return openvino.Core().read_model(path)

    def start(self, graph: Any) -> Session:
        return OpenVinoSession(graph)


class Rounded(nn.Module):
    """Rounds an input with a static range by torch's own fake quantization, which converters know."""

    def __init__(self, simulated: ActivationQuantizer) -> None:
        super().__init__()
        assert simulated.static is not None
        self.scale, self.zero_point = float(simulated.static.scale), int(simulated.static.zero_point)
        self.fmt = simulated.fmt
        self.shared = Shared(simulated.readers)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self._rounded, x)

    def _rounded(self, x: Tensor) -> Tensor:
        low, high = self.fmt.code_min, self.fmt.code_max
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, low, high)


class Written(nn.Module):
    """A float layer behind the quantizer of its input."""

    def __init__(self, layer: nn.Module, rounded: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.rounded = layer, rounded

    @property
    def weight(self) -> Any:
        """The weight of the layer. Models read its dtype."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Any:
        return self.layer(x if self.rounded is None else self.rounded(x))


def _store_codes(graph: Any, layers: Mapping[str, QuantLayer]) -> None:
    """Replace the float weights in a graph by codes that are unpacked."""
    constants = {op.get_friendly_name(): op for op in graph.get_ops() if op.get_type_name() == "Constant"}
    for path, layer in layers.items():
        before = constants[f"self.{path}.layer.weight"]
        unpacked = _unpacked(layer)
        unpacked.set_friendly_name(f"{path}.unpacked")
        for reader in before.output(0).get_target_inputs():
            reader.replace_source_output(unpacked.output(0))


def _unpacked(layer: QuantLayer) -> Any:
    """The operations that turn the codes of a layer into its weight, in the layout of its parameter."""
    import numpy as np
    from openvino import Type
    from openvino import opset13 as ops

    encoded = layer.encoded
    fmt = encoded.format
    rows, columns = encoded.codes.shape
    kind = kind_of(layer.layer)
    assert kind is not None
    shape = layer.size
    if fmt.group_size is not None:
        blocked = (rows, columns // fmt.group_size, fmt.group_size)
    else:
        blocked = (rows, columns) if kind.folds else tuple(shape)
    per_block = (rows, blocked[1], 1) if fmt.group_size is not None else (rows, *(1 for _ in blocked[1:]))
    dtype = getattr(Type, f"{'i' if fmt.symmetric else 'u'}{4 if fmt.bits <= 4 else 8}")
    shift = 0 if fmt.symmetric else 2 ** (3 if fmt.bits <= 4 else 7)

    def constant(codes: Tensor, size: tuple[int, ...]) -> Any:
        return ops.convert(_constant((codes.int() + shift).reshape(size), dtype), Type.f32)

    values = constant(encoded.codes, blocked)
    if not fmt.symmetric:
        values = ops.subtract(values, constant(encoded.by_row(encoded.zero_point), per_block))
    scale = encoded.by_row(encoded.scale).reshape(per_block).numpy().astype(np.float32)
    values = ops.multiply(values, ops.constant(scale))
    if fmt.group_size is not None or (kind.folds is False and tuple(blocked) != tuple(shape)):
        values = ops.reshape(values, ops.constant(np.array([rows, columns] if kind.folds else shape, dtype=np.int64)), False)
    return ops.transpose(values, ops.constant(np.array([1, 0], dtype=np.int64))) if kind.transposed else values


def _constant(codes: Tensor, dtype: Any) -> Any:
    """A constant of integers. Two of 4 bits share a byte, the first in its lower half."""
    import numpy as np
    from openvino import Tensor as OpenVinoTensor
    from openvino import Type
    from openvino.op import Constant

    values = codes.numpy()
    if dtype not in (Type.i4, Type.u4):
        return Constant(values.astype(np.int8 if dtype == Type.i8 else np.uint8))
    nibbles = (values.reshape(-1) & 15).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed = nibbles[0::2] | nibbles[1::2] << 4
    return Constant(OpenVinoTensor(packed, list(values.shape), dtype))


class OpenVinoSession(Session):
    """Computes a graph in float32 and integers on the CPU. It is compiled once for every shape of inputs."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        request = self._request(tuple(inputs.shape))
        (output,) = request.infer([inputs.contiguous().numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(output).clone()  # the next call writes to the same memory

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self.compiled:
            import openvino

            graph = self.graph.clone()
            graph.reshape(list(shape))
            options = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
            }
            self.compiled[shape] = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
        return self.compiled[shape]

    def executed(self) -> Mapping[str, Executed]:
        """Read from the runtime's own model. Its nodes name the layers of the graph that they compute."""
        if not self.compiled:
            return {}
        compiled = next(iter(self.compiled.values())).get_compiled_model()
        found = {}
        for node in compiled.get_runtime_model().get_ops():
            info = {key: str(value.value) for key, value in node.get_rt_info().items()}
            if info["layerType"] in PRODUCTS:
                one = Executed(f"openvino {info['primitiveType']}", info["runtimePrecision"] in INTEGERS)
                names = [node.get_friendly_name(), *info["originalLayersNames"].split(",")]  # fused layers have only the first
                layers = {name.partition(".layer/")[0].removeprefix("__module.") for name in names if ".layer/" in name}
                found |= dict.fromkeys(layers, one)
        return found


OPENVINO = OpenVino()
