"""A graph of OpenVINO that runs, and what the runtime tells of it."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqbench.models import key_values
from sqbench.runtimes.openvino_attention import skip_masked
from sqbench.runtimes.runtime import MARK, Executed, Session

# An option of a graph. OpenVINO's default is 32, for all weights in codes.
GROUP_OPTION = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
KEPT = 4  # shapes of inputs whose compiled graphs are kept. Each holds the weights. Texts have many lengths, which come in order.
PRODUCTS = ("FullyConnected", "Convolution", "MatMul")  # types of nodes


@cache
def core() -> Any:
    """The one `openvino.Core` of this process.

    Its plugin gives the thread another stack for signals. Of two cores that end in the order in which they began, the second gives
    back the stack that the first has freed, and the next signal, as of Ctrl-C, ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


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
        graph = self.graph.clone()
        graph.reshape({number: list(shape) for number, shape in enumerate(shapes)})
        skip_masked(graph)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
        }
        return core().compile_model(graph, "CPU", options | more)

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
