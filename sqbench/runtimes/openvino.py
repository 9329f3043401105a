"""OpenVINO: a simulated model as its graph, with the codes of weights as they are stored, and the session that runs it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.formats.accepts import Accepts, Multiples
from sqbench.formats.format import Format
from sqbench.models import key_values
from sqbench.models.functions import Function
from sqbench.quant.layers import Encoded, QuantLayer
from sqbench.quant.products import placed, products
from sqbench.runtimes.openvino_attention import skip_masked
from sqbench.runtimes.openvino_layers import Static, store_codes, written
from sqbench.runtimes.openvino_parts import split_products
from sqbench.runtimes.openvino_products import multiply_codes
from sqbench.runtimes.runtime import MARK, Executed, Runtime, Session, at_run_time, integer_products, static, unpacked

TITLE = "OpenVINO"
PER_CHANNEL, ALONE = integer_products(TITLE), unpacked(TITLE, Multiples(1))
SHIFTS = ("after", "before")
STATIC, BETWEEN, TOKENS = (
    static(TITLE, SHIFTS),
    static(TITLE, SHIFTS, "tensors between layers"),
    at_run_time(TITLE, {"granularity": ("token",)}),
)
GROUPS = at_run_time(TITLE, {"granularity": ("group",), "group_size": Multiples(16)})
# An option of a graph. OpenVINO's default is 32, for all weights in codes.
GROUP_OPTION = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
KEPT = 4  # shapes of inputs whose compiled graphs are kept. Each holds the weights. Texts have many lengths, which come in order.
PRODUCTS = ("FullyConnected", "Convolution", "MatMul")  # types of nodes


class OpenVino(Runtime):
    """See `Runtime`. Inputs with static ranges become FakeQuantize, and weights the pattern Convert, Subtract, Multiply."""

    name, title, package, file = "openvino", TITLE, "openvino", "openvino_model.xml"
    folds, between = True, BETWEEN

    def accepted(self, inputs: Format | None) -> tuple[Accepts, Accepts | None]:
        if inputs is None:
            return ALONE, None
        if inputs.granularity == "group":
            return ALONE, GROUPS
        return PER_CHANNEL, TOKENS if inputs.dynamic else STATIC

    def refusal(self, weights: Format | None, inputs: Format | None) -> str | None:
        size = None if inputs is None else inputs.group_size
        if weights is not None and size and weights.group_size and weights.group_size % size:
            return f"OpenVINO rounds inputs in groups that divide those of weights, and {size} does not divide {weights.group_size}"
        return super().refusal(weights, inputs)

    def check_together(self, inputs: Mapping[str, tuple[int, Format | None]]) -> None:
        group_of(inputs)

    def write(self, function: Function, parts: Mapping[str, Encoded]) -> Any:
        import openvino

        layers = {path: part for path, part in parts.items() if isinstance(part, QuantLayer)}
        quantizers: dict[int, nn.Module] = {}
        module: Any = function.module
        for path, layer in layers.items():
            module.set_submodule(path, written(layer, quantizers))
        points = placed(module)
        between = {path: Static(module.get_submodule(path)) for path in points}
        for path, quantizer in between.items():
            module.set_submodule(path, quantizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a traced model has constants, and the tracer warns of each
            graph = openvino.convert_model(module, example_input=tuple(function.example.values()))
        for ports, names in ((graph.inputs, function.example), (graph.outputs, function.outputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        multiply_codes(graph, products(points), between)
        store_codes(graph, parts)
        split_products(graph, layers)
        graph.set_rt_info(str(group_of(inputs_of(layers))), GROUP_OPTION)
        return graph

    def save(self, graph: Any, place: Path) -> None:
        import openvino

        openvino.save_model(graph, place / self.file, compress_to_fp16=False)

    def read(self, path: Path) -> Any:
        import openvino

        return openvino.Core().read_model(path)

    def start(self, graph: Any, *, any_rows: bool = False) -> Session:
        return OpenVinoSession(graph, any_rows=any_rows)


def group_of(inputs: Mapping[str, tuple[int, Format | None]]) -> int:
    """How many inputs OpenVINO shall give a scale of their own at run time. It has one number for a graph; 0 is none.

    Args:
        inputs: as in `Runtime.check_together`.

    Raises:
        UserError: layers differ, or a layer's inputs are no multiple, which OpenVINO would then leave in float.
    """
    sizes = {path: None if fmt is None else fmt.group_size for path, (_, fmt) in inputs.items()}
    size = max((one for one in sizes.values() if one), default=0)
    for path, (count, _) in inputs.items():
        if size and (sizes[path] != size or count % size):
            told = f"{path} has {count} inputs " + (f"in groups of {sizes[path]}" if sizes[path] else "without groups")
            one = "OpenVINO has one size for all layers, which must divide their inputs"
            works = "use bits.activations.granularity=token, or another size"
            raise UserError(f"bits.activations.group_size={size}: {told}, and {one}; {works}")
    return size


def inputs_of(layers: Mapping[str, QuantLayer]) -> dict[str, tuple[int, Format | None]]:
    """The inputs of layers, as in `Runtime.check_together`."""
    formats = {path: getattr(layer.activation, "fmt", None) for path, layer in layers.items()}
    return {path: (layer.shape[1], formats[path]) for path, layer in layers.items()}


class OpenVinoSession(Session):
    """Computes a graph in float32 and integers on the CPU. It is compiled for every shape of inputs.

    One compiled graph continues texts of all lengths, and one computes any number of rows.
    """

    def __init__(self, graph: Any, *, any_rows: bool = False) -> None:
        """`any_rows` is as in `Runtime.start`."""
        self.graph = graph
        self.growing = {0: 0} if any_rows else key_values.growing(port.any_name for port in graph.inputs)
        self.groups = graph.has_rt_info(GROUP_OPTION) and graph.get_rt_info(GROUP_OPTION).value != "0"
        self.compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        request = self._request([list(one.shape) for one in inputs])
        arrays = [one.contiguous().numpy() for one in inputs]
        return [torch.from_numpy(one) for one in request.infer(arrays, share_inputs=True, share_outputs=True).values()]

    def _request(self, sizes: list[list[int]]) -> Any:
        if all(sizes[number][axis] for number, axis in self.growing.items()):  # there is a past
            for number, axis in self.growing.items():
                sizes[number][axis] = -1
        shapes = tuple(map(tuple, sizes))
        if shapes not in self.compiled:
            if len(self.compiled) == KEPT:
                del self.compiled[next(iter(self.compiled))]
            self.compiled[shapes] = self._compiled(shapes).create_infer_request()
        return self.compiled[shapes]

    def _compiled(self, shapes: Sequence[Sequence[int]], **more: str) -> Any:
        import openvino

        graph = self.graph.clone()
        graph.reshape({number: list(shape) for number, shape in enumerate(shapes)})
        skip_masked(graph)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
        }
        return openvino.Core().compile_model(graph, "CPU", options | more)

    def executed(self) -> Mapping[str, Executed]:
        """Read from the runtime's own model. Its nodes name the layers and products of the graph that they compute."""
        if not self.compiled:
            return {}
        shapes, request = next(iter(self.compiled.items()))
        nodes = _nodes(request.get_compiled_model())
        if any(node.type == "Subgraph" and node.computed for node in nodes):  # attention as one node, which tells one precision
            nodes = _nodes(self._compiled(shapes, SNIPPETS_MODE="DISABLE"))  # precisions are chosen before nodes are joined
        found: dict[str, Executed] = {}
        for node in nodes:
            if node.type in PRODUCTS:
                integers = node.kernel.lower().endswith("i8") or self.groups
                one = Executed(f"openvino {node.kernel}{', dynamic groups' * self.groups}", integers)
                found |= dict.fromkeys(node.computed, one)
        return found


class Node(NamedTuple):
    """A node of the model that OpenVINO runs, and the layers and products that it computes."""

    type: str
    kernel: str
    computed: set[str]


def _nodes(compiled: Any) -> list[Node]:
    found = []
    for node in compiled.get_runtime_model().get_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        names = [node.get_friendly_name(), *info["originalLayersNames"].split(",")]  # what is fused has only the first
        layers = {name.partition(mark)[0].removeprefix("__module.") for name in names for mark in (".layer/", MARK) if mark in name}
        found.append(Node(info["layerType"], info["primitiveType"], layers))
    return found


OPENVINO = OpenVino()
