"""Number formats and schemes: bit-widths, and which values share a scale. Data only, no tensors."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqbench.errors import UserError, known
from sqbench.formats.scale import FLOAT32, Scale

ELEMENTS = {"int": range(2, 9)}  # element -> the widths in bits that it comes in
CONVENTIONS = ("qmax", "half_range", "signed")
ZERO_POINTS = ("integer",)
# Op set -> what it quantizes, in words.
OP_SETS = {
    "linear": "linear and convolution layers",
    "linear+matmul": "linear and convolution layers, attention's two products",
    "full": "linear and convolution layers, attention's two products, the residual stream, inputs of softmax, norms, activations",
}


@dataclass(frozen=True)
class Format:
    """A number format. Every field is a choice of its own. A field's default means "as before the field existed".

    Attributes:
        bits: the width of a code.
        symmetric: there is no zero-point.
        granularity: which values share one scale. One of the whole `tensor`, an output `channel` of a weight, a `token` (row) of
            an activation, or a `group` of `group_size` neighbours along the input axis.
        dynamic: ranges come from the tensor at run time, not from calibration (activations only).
        convention: the rule for symmetric integers. `qmax` is absmax / (2^(b-1) - 1) without the code -2^(b-1) (SmoothQuant,
            llm-awq). `half_range` is absmax / ((2^b - 1) / 2) with that code (torchao, FQ-ViT). `signed` divides the end of the
            range that is larger in magnitude by -2^(b-1), so that end has the code -2^(b-1) exactly, and the scale is negative if
            it is the upper end (NNCF, AutoRound; weights only).
        scale: the dtype and the rule of scales.
        element: what codes are. `int` is a signed integer.
        zero_point: what zero-points are, where there are any.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    convention: str = "qmax"
    scale: Scale = FLOAT32
    element: str = "int"
    zero_point: str = "integer"

    @property
    def code_min(self) -> int:
        """The smallest code. Codes are signed: b bits hold -2^(b-1) .. 2^(b-1) - 1."""
        full = -(2 ** (self.bits - 1))
        return full + 1 if self.symmetric and self.convention == "qmax" else full

    @property
    def code_max(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def levels(self) -> float:
        """The number of scale steps from 0 to the largest magnitude if symmetric, else from the smallest value to the largest."""
        if not self.symmetric:
            return 2**self.bits - 1
        steps = {"qmax": self.code_max, "half_range": (2**self.bits - 1) / 2, "signed": 2 ** (self.bits - 1)}
        return steps[self.convention]

    def check(self, key: str, *, activations: bool) -> None:
        """Raise UserError that names `key` if the format cannot be executed."""

        def refuse(field: str, works: str) -> UserError:
            return UserError(f"{key}.{field}={getattr(self, field)}: must be {works}")

        def choose(field: str, names: Collection[str]) -> None:
            if getattr(self, field) not in names:
                raise refuse(field, f"one of {', '.join(names)}")

        choose("element", ELEMENTS)
        widths = ELEMENTS[self.element]
        if self.bits not in widths:
            floats = "16-bit activations are the model's own float: leave `activations` null"
            raise refuse("bits", f"{min(widths)} to {max(widths)} ({floats})")
        choose("zero_point", ZERO_POINTS)
        sharing = ("tensor", "token", "group") if activations else ("tensor", "channel", "group")
        if self.granularity not in sharing:
            raise refuse("granularity", f"one of {', '.join(sharing)} here")
        choose("convention", CONVENTIONS)
        if self.convention == "signed" and (activations or not self.symmetric):
            raise refuse("convention", "qmax or half_range: signed is for weights with symmetric=true")
        self.scale.check(f"{key}.scale")
        if (self.granularity == "group") != (self.group_size is not None):
            raise refuse("group_size", "a size with granularity=group, null without")
        if self.group_size is not None and self.group_size < 1:
            raise refuse("group_size", "a positive number")
        if self.dynamic and not activations:
            raise refuse("dynamic", "false: weights are quantized once")
        if activations and self.granularity in ("token", "group") and not self.dynamic:
            raise refuse("dynamic", f"true: {self.granularity} ranges of activations exist only at run time")

    def ungrouped(self, granularity: str) -> "Format":
        """The same format with another granularity in place of groups."""
        return replace(self, granularity=granularity, group_size=None) if self.granularity == "group" else self

    def for_width(self, channels: int, granularity: str) -> "Format":
        """The format of a layer with that many input channels. With fewer than one group, `granularity` replaces the groups."""
        return self.ungrouped(granularity) if self.group_size is not None and channels < self.group_size else self

    def check_width(self, layer: str, channels: int, key: str = "bits.weights", beside: Collection[int] = ()) -> None:
        """Raise UserError if groups do not divide a layer's input channels. It names `key` and every size that works.

        A layer with fewer channels than one group has no groups (`for_width`).

        Args:
            beside: input channels of all layers.
        """
        size = self.group_size
        if size is None or channels < size or channels % size == 0:
            return
        divide = [count for count in range(2, channels + 1) if channels % count == 0]
        everywhere = [count for count in divide if all(other < count or other % count == 0 for other in beside)]
        listed = f"these divide it: {divide}"
        if everywhere != divide:
            listed += f"; sizes for every layer: {everywhere}" if everywhere else "; no size works in every layer"
        raise UserError(
            f"{key}.group_size={size} does not divide in_features={channels} of {layer} ({channels} % {size} = {channels % size});"
            f" {listed}"
        )

    def stored_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a weight in this format: packed codes, scales, and zero-points. Each zero-point takes the bits of one code."""
        codes = out_features * in_features
        blocks = {"tensor": 1, "channel": out_features, "group": codes // (self.group_size or 1)}[self.granularity]
        code_bits = (codes + (0 if self.symmetric else blocks)) * self.bits
        return -(-code_bits // 8) + blocks * self.scale.bytes

    def __str__(self) -> str:
        """For example `int4 asym group 64` or `int8 sym token dynamic`."""
        name = f"int{self.bits}" if self.element == "int" else self.element
        words = [name, "sym" if self.symmetric else "asym", self.granularity]
        words += [str(self.group_size)] * (self.group_size is not None) + ["dynamic"] * self.dynamic
        return " ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """The format as plain data, in the form of a record.

        The fields of the first records are always there, `scale_dtype` for `scale.dtype`. Later fields are there only if they are
        not the default. So a new field changes the identity of no point that does not use it.
        """
        plain = {name: getattr(self, name) for name in _FIRST} | {"scale_dtype": self.scale.dtype}
        chosen = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in (*_FIRST, "scale")}
        later = {name: value for name, value in chosen.items() if value != getattr(Format, name)}
        scale = {name: value for name, value in asdict(self.scale).items() if name != "dtype" and value != getattr(Scale, name)}
        return plain | later | ({"scale": scale} if scale else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], key: str = "weights") -> "Format":
        """The format from plain data, as in a YAML file or a record. A field that is missing or null has its default.

        Raises:
            UserError: `scale_dtype` and `scale.dtype` differ. `key` is in its message.
        """
        own = {name: value for name, value in plain.items() if value is not None}
        scale = {name: value for name, value in own.pop("scale", {}).items() if value is not None}
        if (dtype := own.pop("scale_dtype", None)) is not None and scale.setdefault("dtype", dtype) != dtype:
            raise UserError(f"{key}.scale_dtype={dtype}: must be {key}.scale.dtype={scale['dtype']}, which is the same, or null")
        return cls(**own, scale=Scale(**scale))


_FIRST = ("bits", "symmetric", "granularity", "group_size", "dynamic", "convention")  # fields of the first records


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
    """

    name: str
    weights: Format | None = None
    activations: Format | None = None
    ops: str = "linear"
    edge_bits: int | None = None
    layers: tuple[str, ...] | None = None
    widths: tuple[tuple[str, int], ...] = ()

    @property
    def is_float(self) -> bool:
        return self.weights is None and self.activations is None

    def check(self) -> None:
        """Raise UserError if a format cannot be executed."""
        if self.ops not in OP_SETS:
            raise UserError(f"bits.ops={self.ops}: {known(self.ops, OP_SETS)}")
        if self.ops != "linear" and self.activations is None and self.weights is not None:
            raise UserError(f"bits.ops={self.ops}: {self.name} leaves activations in float; use bits.ops=linear")
        if self.edge_bits is not None and not 2 <= self.edge_bits <= 8:
            raise UserError(f"bits.edge_bits={self.edge_bits}: must be 2 to 8, or null")
        if self.layers == ():
            raise UserError("layers=[]: must hold the name of a layer, or of a module around some; null is all layers")
        if self.weights is not None:
            self.weights.check("bits.weights", activations=False)
        if self.activations is not None:
            self.activations.check("bits.activations", activations=True)

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
        """The scheme as plain data, in the form of a record. `layers` and `widths` appear only if they are set."""
        slots = {"weights": self.weights, "activations": self.activations}
        formats = {slot: fmt and fmt.as_dict() for slot, fmt in slots.items()}
        chosen = {"layers": list(self.layers or ()), "widths": dict(self.widths)}
        plain = {"name": self.name, **formats, "ops": self.ops, "edge_bits": self.edge_bits}
        return plain | {key: value for key, value in chosen.items() if value}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Scheme":
        """The scheme from plain data, as in a YAML file of `conf/bits` or a record."""

        def format_of(key: str) -> Format | None:
            return None if plain.get(key) is None else Format.from_dict(plain[key], f"bits.{key}")

        layers, widths = tuple(plain.get("layers") or ()), tuple((plain.get("widths") or {}).items())
        ops, edges = plain.get("ops", "linear"), plain.get("edge_bits")
        return cls(plain["name"], format_of("weights"), format_of("activations"), ops, edges, layers or None, widths)
