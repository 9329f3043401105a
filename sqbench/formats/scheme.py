"""A scheme: the formats of one quantized model. Data only, no tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqbench.errors import UserError, known
from sqbench.formats.format import Format

# Op set -> what it quantizes, in words.
OP_SETS = {
    "linear": "linear and convolution layers",
    "linear+matmul": "linear and convolution layers, attention's two products",
    "full": "linear and convolution layers, attention's two products, the residual stream, inputs of softmax, norms, activations",
}


@dataclass(frozen=True)
class Scheme:
    """The formats of one quantized model. None leaves a tensor in the model's own float dtype.

    Attributes:
        ops: the set of operations whose inputs are quantized. Results with different op sets are not comparable. `linear` is
            linear and convolution layers. `linear+matmul` adds attention's two products. `full` adds the residual stream, softmax
            inputs, and inputs of norms and activation functions.
        edge_bits: the width of the first and the last layer that can be quantized, often 8. None is the same width as everywhere.
            An output embedding and a fitted head stay in float, so the last layer is the one before them.
        layers: fnmatch patterns of the layers, or of modules that hold them, that the scheme applies to. None is all layers.
        widths: (layer, bits) of weights that get another width than that of `weights`.
        embedding, head: the formats of the token embedding and of the output matrix. A tied matrix has one format.
    """

    name: str
    weights: Format | None = None
    activations: Format | None = None
    ops: str = "linear"
    edge_bits: int | None = None
    layers: tuple[str, ...] | None = None
    widths: tuple[tuple[str, int], ...] = ()
    embedding: Format | None = None
    head: Format | None = None

    @property
    def is_float(self) -> bool:
        """Whether all layers stay in float. An embedding or a head may still be quantized."""
        return self.weights is None and self.activations is None

    def check(self) -> None:
        """Raise UserError if a format cannot be executed."""
        if self.ops not in OP_SETS:
            raise UserError(f"bits.ops={self.ops}: {known(self.ops, OP_SETS)}")
        if self.ops != "linear" and self.activations is None and self.weights is not None:
            raise UserError(f"bits.ops={self.ops}: {self.name} leaves activations in float; use bits.ops=linear")
        if self.edge_bits is not None and not 2 <= self.edge_bits <= 8:
            raise UserError(f"bits.edge_bits={self.edge_bits}: must be 2 to 8, or null")
        if self.edge_bits is not None and not all(fmt is None or fmt.is_integer for fmt in (self.weights, self.activations)):
            raise UserError(f"bits.edge_bits={self.edge_bits}: must be null; {self.name} has elements of one width")
        if self.layers == ():
            raise UserError("layers=[]: must hold the name of a layer, or of a module around some; null is all layers")
        if self.weights is not None:
            self.weights.check("bits.weights", activations=False)
        if self.activations is not None:
            self.activations.check("bits.activations", activations=True)
        for slot, fmt in (("embedding", self.embedding), ("head", self.head)):
            if fmt is not None:
                fmt.check(f"bits.{slot}", activations=False)

    def weights_of(self, layer: str) -> Format | None:
        """The format of a layer's weight, without regard to `edge_bits`."""
        bits = dict(self.widths).get(layer)
        return self.weights if self.weights is None or bits is None else replace(self.weights, bits=bits)

    def of_layer(self, layer: str, index: int, count: int) -> tuple[Format | None, Format | None]:
        """The formats of a layer's weight and input, from its name and its place among `count` layers."""
        formats = self.weights_of(layer), self.activations
        if self.edge_bits is None or index not in (0, count - 1):
            return formats
        edge = [fmt and replace(fmt, bits=self.edge_bits) for fmt in formats]
        return edge[0], edge[1]

    def as_dict(self) -> dict[str, Any]:
        """The scheme as plain data, in the form of a record. Fields that later versions added appear only if they are set."""
        slots = {"weights": self.weights, "activations": self.activations}
        formats = {slot: fmt and fmt.as_dict() for slot, fmt in slots.items()}
        tables = {slot: fmt and fmt.as_dict() for slot, fmt in (("embedding", self.embedding), ("head", self.head))}
        chosen = {"layers": list(self.layers or ()), "widths": dict(self.widths), **tables}
        plain = {"name": self.name, **formats, "ops": self.ops, "edge_bits": self.edge_bits}
        return plain | {key: value for key, value in chosen.items() if value}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Scheme":
        """The scheme from plain data, as in a YAML file of `conf/bits` or a record."""

        def format_of(key: str) -> Format | None:
            return None if plain.get(key) is None else Format.from_dict(plain[key], f"bits.{key}")

        layers, widths = tuple(plain.get("layers") or ()), tuple((plain.get("widths") or {}).items())
        ops, edges = plain.get("ops", "linear"), plain.get("edge_bits")
        tables = format_of("embedding"), format_of("head")
        return cls(plain["name"], format_of("weights"), format_of("activations"), ops, edges, layers or None, widths, *tables)
