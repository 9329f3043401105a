"""OpenVINO: the formats that it runs, and a simulated model as its graph, with the codes of weights as they are stored."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sqbench.errors import UserError
from sqbench.formats.accepts import Accepts, Multiples
from sqbench.formats.format import Format
from sqbench.models.functions import Function
from sqbench.quant.layers import Encoded, QuantLayer
from sqbench.quant.products import placed, products
from sqbench.runtimes.openvino_layers import Static, store_codes, written
from sqbench.runtimes.openvino_parts import split_products
from sqbench.runtimes.openvino_products import multiply_codes
from sqbench.runtimes.openvino_session import GROUP_OPTION, OpenVinoSession, core
from sqbench.runtimes.runtime import Runtime, Session, at_run_time, integer_products, static, unpacked

TITLE = "OpenVINO"
PER_CHANNEL, ALONE = integer_products(TITLE), unpacked(TITLE, Multiples(1))
SHIFTS = ("after", "before")
STATIC, BETWEEN = static(TITLE, SHIFTS), static(TITLE, SHIFTS, "tensors between layers")
TOKENS = at_run_time(TITLE, {"granularity": ("token",)})
GROUPS = at_run_time(TITLE, {"granularity": ("group",), "group_size": Multiples(16)})


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
        return core().read_model(path)

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


OPENVINO = OpenVino()
