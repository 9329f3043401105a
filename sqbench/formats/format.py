"""A number format: what a code is, which values share a scale, and how the scale is found. Data only, no tensors."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqbench.errors import UserError
from sqbench.formats.blocks import BLOCKS
from sqbench.formats.element import ELEMENTS, Integer, Table
from sqbench.formats.scale import FLOAT32, POWERS, Scale

CONVENTIONS = ("qmax", "half_range", "signed", "no_clipping")
ZERO_POINTS = ("integer", "minimum")
RANGES = ("with_zero", "own")
SHIFTS = ("after", "before")
TIES = ("even", "up", "away")


@dataclass(frozen=True)
class Format:
    """A number format. Every field is a choice of its own. A field's default means "as before the field existed".

    Attributes:
        bits: the width of a code.
        symmetric: there is no zero-point.
        granularity: which values share one scale. One of the whole `tensor`, an output `channel` of a weight, a `token` (row) of
            an activation, a `group` of `group_size` neighbours along the input axis, or a `block` of a weight: `block_rows` output
            channels times `group_size` inputs.
        dynamic: ranges come from the tensor at run time, not from calibration (activations only).
        convention: the rule for symmetric integers. `qmax` is absmax / (2^(b-1) - 1) without the code -2^(b-1) (SmoothQuant,
            llm-awq). `half_range` is absmax / ((2^b - 1) / 2) with that code (torchao, FQ-ViT). `signed` divides the end of the
            range that is larger in magnitude by -2^(b-1), so that end has the code -2^(b-1) exactly, and the scale is negative if
            it is the upper end (NNCF, AutoRound; weights only). `no_clipping` is the smallest scale that clips neither end of
            -2^(b-1) .. 2^(b-1) - 1 (torchao's SYMMETRIC_NO_CLIPPING_ERR).
        scale: the dtype and the rule of scales.
        element: what codes are: a signed integer `int`, or one of `ELEMENTS`. In checkpoints also one of `BLOCKS`.
        zero_point: what zero-points are, where there are any. `integer` is a code. `minimum` is the value of the smallest code, in
            the dtype of scales (GGUF's Q4_1 and Q5_1; weights only).
        range: `with_zero` widens ranges of asymmetric integers to contain 0. `own` does not, and clamps the zero-point to a code.
            A block of one sign may then saturate (AutoAWQ, NNCF's weights).
        shift: whether the zero-point is added `after` x / scale was rounded, or `before` (compressed-tensors, NNCF). They differ at
            ties.
        ties: which integer a number half way between two gets: the `even` one, the one further `up`, or the one further `away` from
            0 (GGUF: up at 4 and 5 bits, away at 8). For weights only.
        amax: the largest magnitude of the whole tensor, for scales with a second level. `codec.of_tensor` sets it.
        contiguous: the columns of a group stand side by side. In some checkpoints they do not, and the tensor has their order.
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
    block_rows: int | None = None
    range: str = "with_zero"
    shift: str = "after"
    ties: str = "even"
    amax: float | None = None
    contiguous: bool = True

    @property
    def is_integer(self) -> bool:
        return self.element == "int"

    @property
    def has_grid(self) -> bool:
        """Whether all codes stand for the numbers of one grid, times their scale. Those of `BLOCKS` do not."""
        return self.element not in BLOCKS

    @property
    def smallest(self) -> float:
        """The smallest number of the element. Integers are signed: b bits hold -2^(b-1) .. 2^(b-1) - 1."""
        if not self.is_integer:
            return -self.largest
        full = -(2 ** (self.bits - 1))
        return full + 1 if self.symmetric and self.convention == "qmax" else full

    @property
    def largest(self) -> float:
        """The largest number of the element."""
        element = ELEMENTS[self.element]
        return 2 ** (self.bits - 1) - 1 if isinstance(element, Integer) else element.largest

    @property
    def code_min(self) -> int:
        """The smallest code of an integer."""
        return int(self.smallest)

    @property
    def code_max(self) -> int:
        """The largest code of an integer."""
        return int(self.largest)

    @property
    def levels(self) -> float:
        """The number of scale steps from 0 to the largest magnitude if symmetric, else from the smallest value to the largest."""
        if not self.symmetric:
            return 2**self.bits - 1
        if not self.is_integer or self.convention == "qmax":
            return self.largest
        return (2**self.bits - 1) / 2 if self.convention == "half_range" else 2 ** (self.bits - 1)

    @property
    def has_minimum(self) -> bool:
        """Whether the smallest code stands for a minimum, and not every code for a multiple of the scale."""
        return not self.symmetric and self.zero_point == "minimum"

    @property
    def two_levels(self) -> bool:
        """Whether the scales have a scale themselves."""
        return self.scale.second != "none"

    @property
    def multiplies(self) -> bool:
        """Whether codes are found by a product with a reciprocal of the scale instead of a quotient."""
        return self.scale.times.endswith("reciprocal") or (self.two_levels and self.scale.order in ("torchao", "auto-round"))

    @property
    def signed_zeros(self) -> bool:
        """Whether -0 keeps its sign. Tools differ where scales have two levels."""
        return not self.two_levels or self.scale.order == "torchao"

    def check(self, key: str, *, activations: bool) -> None:
        """Raise UserError that names `key` if the format cannot be executed."""

        def refuse(field: str, works: str) -> UserError:
            return UserError(f"{key}.{field}={getattr(self, field)}: must be {works}")

        def choose(field: str, names: Collection[str]) -> None:
            if getattr(self, field) not in names:
                raise refuse(field, f"one of {', '.join(names)}")

        choose("element", ELEMENTS)
        widths = ELEMENTS[self.element].widths
        if self.bits not in widths:
            floats = "16-bit activations are the model's own float: leave `activations` null"
            alone = f"{widths[0]}, the width of element={self.element}, or null"
            raise refuse("bits", f"{min(widths)} to {max(widths)} ({floats})" if self.is_integer else alone)
        choose("zero_point", ZERO_POINTS)
        sharing = ("tensor", "token", "group") if activations else ("tensor", "channel", "group", "block")
        if self.granularity not in sharing:
            raise refuse("granularity", f"one of {', '.join(sharing)} here")
        choose("convention", CONVENTIONS)
        choose("range", RANGES)
        if not self.contiguous:
            raise refuse("contiguous", "true: only checkpoints have groups whose columns are apart")
        choose("shift", SHIFTS)
        choose("ties", TIES)
        if self.ties != "even" and (activations or not self.is_integer):
            raise refuse("ties", "even, or null: other rules are for integer weights")
        if self.has_minimum and (activations or self.shift != "after"):
            raise refuse("zero_point", f"integer, or null: a minimum is for weights with {key}.shift=after")
        if not self.is_integer and not self.symmetric:
            raise refuse("symmetric", f"true: element={self.element} has no zero-point")
        if not self.is_integer and self.convention != "qmax":
            raise refuse("convention", f"null: element={self.element} has one rule; conventions are for integers")
        if self.convention in ("signed", "no_clipping") and (activations or not self.symmetric):
            raise refuse("convention", f"qmax or half_range: {self.convention} is for weights with symmetric=true")
        for field in ("range", "shift", "zero_point"):
            if self.symmetric and getattr(self, field) != getattr(Format, field):
                raise refuse(field, f"{getattr(Format, field)}, or null: {key}.symmetric=true has no zero-point")
        self.scale.check(f"{key}.scale")
        if self.scale.rule in POWERS and (not self.symmetric or isinstance(ELEMENTS[self.element], Table)):
            raise UserError(f"{key}.scale.dtype=e8m0: needs symmetric integers or a float element, not {self}")
        grouped = self.granularity in ("group", "block")
        if grouped != (self.group_size is not None):
            raise refuse("group_size", "a size with granularity=group or block, null without")
        if (self.granularity == "block") != (self.block_rows is not None):
            raise refuse("block_rows", "a size with granularity=block, null without")
        for field in ("group_size", "block_rows"):
            if (size := getattr(self, field)) is not None and size < 1:
                raise refuse(field, "a positive number")
        if self.two_levels and not grouped:
            raise refuse("granularity", f"group with {key}.scale.second={self.scale.second}: one level is enough for one scale")
        if self.dynamic and not activations:
            raise refuse("dynamic", "false: weights are quantized once")
        if activations and self.granularity in ("token", "group") and not self.dynamic:
            raise refuse("dynamic", f"true: {self.granularity} ranges of activations exist only at run time")

    def ungrouped(self, granularity: str) -> "Format":
        """The same format with another granularity in place of groups or blocks. It has one level of scales."""
        if self.group_size is None:
            return self
        scale = FLOAT32 if self.two_levels else self.scale
        return replace(self, granularity=granularity, group_size=None, block_rows=None, scale=scale)

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
        if size is not None and channels >= size:
            _check_divides(
                f"{key}.group_size", size, "in_features", channels, layer, lambda count: [o for o in beside if o >= count]
            )

    def check_rows(self, layer: str, outputs: int, key: str = "bits.weights", beside: Collection[int] = ()) -> None:
        """Raise UserError if the rows of blocks do not divide a layer's outputs. It names `key` and every size that works.

        Args:
            beside: outputs of all layers that have blocks.
        """
        if self.block_rows is not None:
            _check_divides(f"{key}.block_rows", self.block_rows, "out_features", outputs, layer, lambda count: beside)

    def stored_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a weight in this format: packed codes, scales of both levels, and zero-points.

        Each zero-point takes the bits of one code, and each minimum those of a scale.
        """
        codes = out_features * in_features
        if self.element in BLOCKS:
            block = BLOCKS[self.element]
            return codes // block.values * block.bytes
        rows = -(-out_features // (self.block_rows or 1))  # the last blocks of a checkpoint can be smaller
        blocks = {"tensor": 1, "channel": out_features}.get(self.granularity, rows * in_features // (self.group_size or 1))
        offset = 0 if self.symmetric else self.scale.bits if self.has_minimum else self.bits
        code_bits = codes * self.bits + blocks * offset
        return -(-code_bits // 8) + blocks * self.scale.bits // 8 + 4 * self.two_levels

    def __str__(self) -> str:
        """For example `int4 asym group 64`, `int8 sym token dynamic`, `e2m1 group 16 scale e4m3` or `q6_k`."""
        if not self.has_grid:
            return self.element
        integer = [f"int{self.bits}", "sym" if self.symmetric else "min" if self.has_minimum else "asym"]
        words = [*(integer if self.is_integer else [self.element]), self.granularity]
        sizes = [size for size in (self.block_rows, self.group_size) if size is not None]
        words += ["x".join(map(str, sizes))] * bool(sizes) + ["dynamic"] * self.dynamic
        words += [f"scale {self.scale.dtype}"] * (self.scale.dtype in ("e8m0", "e4m3"))
        return " ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """The format as plain data, in the form of a record.

        The fields of the first records are always there, `scale_dtype` for `scale.dtype`. Later fields are there only if they are
        not the default. So a new field changes the identity of no point that does not use it.
        """
        plain = {name: getattr(self, name) for name in _FIRST} | {"scale_dtype": self.scale.dtype}
        chosen = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in (*_FIRST, "scale", "amax")}
        later = {name: value for name, value in chosen.items() if value != getattr(Format, name)}
        scale = {name: value for name, value in asdict(self.scale).items() if name != "dtype" and value != getattr(Scale, name)}
        return plain | later | ({"scale": scale} if scale else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], key: str = "weights") -> "Format":
        """The format from plain data, as in a YAML file or a record. A field that is missing or null has its default.

        `bits` is the width of the element where it has only one.

        Raises:
            UserError: `scale_dtype` and `scale.dtype` differ. `key` is in its message.
        """
        own = {name: value for name, value in plain.items() if value is not None}
        scale = {name: value for name, value in own.pop("scale", {}).items() if value is not None}
        if (dtype := own.pop("scale_dtype", None)) is not None and scale.setdefault("dtype", dtype) != dtype:
            raise UserError(f"{key}.scale_dtype={dtype}: must be {key}.scale.dtype={scale['dtype']}, which is the same, or null")
        element = ELEMENTS.get(own.get("element", "int"))
        if element is not None and not isinstance(element, Integer):
            own.setdefault("bits", element.widths[0])
        return cls(**own, scale=Scale(**scale))


_FIRST = ("bits", "symmetric", "granularity", "group_size", "dynamic", "convention")  # fields of the first records


def _check_divides(key: str, size: int, side: str, length: int, layer: str, concerned: Callable[[int], Collection[int]]) -> None:
    """Raise UserError if a size does not divide the length of a layer's side.

    Args:
        concerned: a size -> the lengths of all layers that it must divide too.
    """
    if length % size == 0:
        return
    divide = [count for count in range(2, length + 1) if length % count == 0]
    everywhere = [count for count in divide if all(other % count == 0 for other in concerned(count))]
    listed = f"these divide it: {divide}"
    if everywhere != divide:
        listed += f"; sizes for every layer: {everywhere}" if everywhere else "; no size works in every layer"
    raise UserError(f"{key}={size} does not divide {side}={length} of {layer} ({length} % {size} = {length % size}); {listed}")
