"""Number formats and schemes: what is stored in how many bits, and what shares a scale. Data only, no tensors."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqbench.errors import UserError, known

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# What is quantized, in words.
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
        symmetric: zero-point fixed at 0; else an integer zero-point.
        granularity: what shares one scale: the whole `tensor`, an output `channel` of a weight, a `token` (row) of an
            activation, or a `group` of `group_size` neighbours along the input axis.
        dynamic: ranges come from the tensor at run time rather than from calibration (activations only).
        convention: of symmetric scales: `qmax` is absmax / (2^(b-1) - 1) without the code -2^(b-1) (SmoothQuant, llm-awq),
            `half_range` is absmax / ((2^b - 1) / 2) with it (torchao, FQ-ViT).
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
        """Steps of one scale: from 0 to the largest magnitude if symmetric, else from the smallest value to the largest."""
        if not self.symmetric:
            return 2**self.bits - 1
        return self.code_max if self.convention == "qmax" else (2**self.bits - 1) / 2

    def check(self, key: str, *, activations: bool) -> None:
        """Raise UserError, naming `key`, for a format that cannot be executed."""

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
        """The same format, with another granularity in place of groups."""
        return replace(self, granularity=granularity, group_size=None) if self.granularity == "group" else self

    def for_width(self, channels: int, granularity: str) -> "Format":
        """The format of a layer with so many input channels: with fewer than one group, another granularity takes its place."""
        return self.ungrouped(granularity) if self.group_size is not None and channels < self.group_size else self

    def check_width(self, layer: str, channels: int, key: str = "bits.weights", beside: Collection[int] = ()) -> None:
        """Raise UserError, naming `key` and every size that works, if groups do not divide a layer's input channels.

        A layer with fewer channels than one group has none (`for_width`).

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
        """Bytes of a weight in this format: packed codes, scales, and zero-points of one code each."""
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
        ops: the set of operations whose inputs are quantized: two results with different op sets are not comparable. `linear`:
            linear and convolution layers; `linear+matmul`: attention's two products too; `full`: the residual stream, softmax
            inputs and inputs of norms and activation functions as well.
        edge_bits: of the first and the last layer that is quantized, where it is often 8; None is the same as everywhere. (An
            output embedding and a fitted head stay in float: the layer before them is the last then.)
        layers: fnmatch patterns of layers, or of modules that hold them, to which the scheme is applied; None is all.
        widths: (layer, bits) of weights that get another width than `weights` has.
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
        """Format of a layer's weight, the first and the last layer's `edge_bits` apart."""
        bits = dict(self.widths).get(layer)
        return self.weights if self.weights is None or bits is None else replace(self.weights, bits=bits)

    def of_layer(self, layer: str, index: int, count: int) -> tuple[Format | None, Format | None]:
        """Formats of the weight and the input of a layer, by its name and its place among `count` layers."""
        formats = self.weights_of(layer), self.activations
        if self.edge_bits is None or index not in (0, count - 1):
            return formats
        edge = [fmt and replace(fmt, bits=self.edge_bits) for fmt in formats]
        return edge[0], edge[1]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as a record has it; layers and widths only where they are chosen."""
        fields = asdict(self)
        chosen = {"layers": list(self.layers or ()), "widths": dict(self.widths)}
        return {key: value for key, value in (fields | chosen).items() if key not in chosen or value}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Scheme":
        """From plain data, as in a YAML of `conf/bits` or a record."""
        formats = {key: None if fields.get(key) is None else Format(**fields[key]) for key in ("weights", "activations")}
        weights, activations = formats["weights"], formats["activations"]
        return cls(fields["name"], weights, activations, fields.get("ops", "linear"), fields.get("edge_bits"))
