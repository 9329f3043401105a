"""Number formats and schemes: bit-widths, and which values share a scale. Data only, no tensors."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqbench.errors import UserError, known

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Op set -> what it quantizes, in words.
OP_SETS = {
    "linear": "linear and convolution layers",
    "linear+matmul": "linear and convolution layers, attention's two products",
    "full": "linear and convolution layers, attention's two products, the residual stream, inputs of softmax, norms, activations",
}


@dataclass(frozen=True)
class Format:
    """A uniform integer format.

    Attributes:
        bits: 2 to 8.
        symmetric: the zero-point is fixed at 0. Otherwise it is an integer.
        granularity: which values share one scale. One of the whole `tensor`, an output `channel` of a weight, a `token` (row) of
            an activation, or a `group` of `group_size` neighbours along the input axis.
        dynamic: ranges come from the tensor at run time, not from calibration (activations only).
        convention: the rule for symmetric scales. `qmax` is absmax / (2^(b-1) - 1) without the code -2^(b-1) (SmoothQuant,
            llm-awq). `half_range` is absmax / ((2^b - 1) / 2) with that code (torchao, FQ-ViT).
        scale_dtype: the dtype that scales are rounded to and stored in.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    convention: str = "qmax"
    scale_dtype: str = "float32"

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
        return self.code_max if self.convention == "qmax" else (2**self.bits - 1) / 2

    def check(self, key: str, *, activations: bool) -> None:
        """Raise UserError that names `key` if the format cannot be executed."""

        def refuse(field: str, works: str) -> UserError:
            return UserError(f"{key}.{field}={getattr(self, field)}: {works}")

        if not 2 <= self.bits <= 8:
            raise refuse("bits", "must be 2 to 8 (16-bit activations are the model's own float: leave `activations` null)")
        allowed = ("tensor", "token", "group") if activations else ("tensor", "channel", "group")
        if self.granularity not in allowed:
            raise refuse("granularity", f"must be one of {', '.join(allowed)} here")
        if self.convention not in ("qmax", "half_range"):
            raise refuse("convention", "must be qmax or half_range")
        if self.scale_dtype not in SCALE_BYTES:
            raise refuse("scale_dtype", f"must be one of {', '.join(SCALE_BYTES)}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise refuse("group_size", "a size with granularity=group, null without")
        if self.group_size is not None and self.group_size < 1:
            raise refuse("group_size", "must be a positive number")
        if self.dynamic and not activations:
            raise refuse("dynamic", "must be false: weights are quantized once")
        if activations and self.granularity in ("token", "group") and not self.dynamic:
            raise refuse("dynamic", f"must be true: {self.granularity} ranges of activations exist only at run time")

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
        return -(-code_bits // 8) + blocks * SCALE_BYTES[self.scale_dtype]

    def __str__(self) -> str:
        """For example `int4 asym group 64` or `int8 sym token dynamic`."""
        words = [f"int{self.bits}", "sym" if self.symmetric else "asym", self.granularity]
        words += [str(self.group_size)] * (self.group_size is not None) + ["dynamic"] * self.dynamic
        return " ".join(words)


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
        fields = asdict(self)
        chosen = {"layers": list(self.layers or ()), "widths": dict(self.widths)}
        return {key: value for key, value in (fields | chosen).items() if key not in chosen or value}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Scheme":
        """The scheme from plain data, as in a YAML file of `conf/bits` or a record. `layers` and `widths` are not read."""
        formats = {key: None if fields.get(key) is None else Format(**fields[key]) for key in ("weights", "activations")}
        weights, activations = formats["weights"], formats["activations"]
        return cls(fields["name"], weights, activations, fields.get("ops", "linear"), fields.get("edge_bits"))
