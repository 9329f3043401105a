"""How scales are found and stored. Data only, no tensors."""

from dataclasses import dataclass

from sqbench.errors import UserError

DTYPES = {"float32": 32, "float16": 16, "bfloat16": 16, "e8m0": 8, "e4m3": 8}  # dtype -> bits
POWERS = ("floor", "ceil", "even", "even_m1", "rceil")  # rules of scales that are powers of two
RULES = ("absmax", *POWERS)
SECOND = ("none", "float32")
ORDERS = ("modelopt", "torchao", "compressed-tensors", "auto-round")
TIMES = ("scale", "reciprocal", "unrounded", "unrounded_reciprocal")


@dataclass(frozen=True)
class Scale:
    """How the values of a block get their scale.

    Attributes:
        dtype: the dtype that scales are rounded to and stored in. `e8m0` holds powers of two from 2^-127 to 2^127.
        rule: how a scale follows from the largest magnitude a of a block, for an element whose largest number is m. `absmax` is
            a / m, rounded to the dtype. The others are powers of two, and only for `e8m0`: `floor` is 2^(floor(log2 a) - floor(log2
            m)) (OCP Microscaling Formats, 2023; the largest values may be clipped). `ceil` is the same with ceil(log2 a). `even`
            rounds a to the element's mantissa bits first, then takes `floor`; `even_m1` rounds a to one mantissa bit for every
            element. `rceil` is 2^ceil(log2(a / m)), the smallest power of two that clips nothing.
        second: a scale of the scales. `float32` is one number for the whole tensor, its largest magnitude / (448 m) (NVFP4).
        order: the order of float operations where there is a second level. Tools differ by single codes (`scaling.two_levels`).
        times: how codes are found. `scale` divides by the scale as stored. `reciprocal` multiplies by 1 / scale (torchao).
            `unrounded` divides by the scale as it was before its dtype rounded it (NNCF). `unrounded_reciprocal` multiplies by 1 /
            that scale (llama.cpp).
    """

    dtype: str = "float32"
    rule: str = "absmax"
    second: str = "none"
    order: str = "modelopt"
    times: str = "scale"

    @property
    def bits(self) -> int:
        """Bits of one scale."""
        return DTYPES[self.dtype]

    def check(self, key: str) -> None:
        """Raise UserError that names `key` if a value is unknown, or if two values do not go together."""

        def refuse(field: str, works: str) -> UserError:
            return UserError(f"{key}.{field}={getattr(self, field)}: must be {works}")

        known = {"dtype": DTYPES, "rule": RULES, "second": SECOND, "order": ORDERS, "times": TIMES}
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise refuse(field, f"one of {', '.join(names)}")
        if self.dtype == "e8m0" and self.rule not in POWERS:
            raise refuse("rule", f"one of {', '.join(POWERS)} with {key}.dtype=e8m0, whose scales are powers of two")
        if self.dtype != "e8m0" and self.rule in POWERS:
            raise refuse("rule", f"absmax with {key}.dtype={self.dtype}; scales that are powers of two need {key}.dtype=e8m0")
        if (self.dtype == "e4m3") != (self.second == "float32"):
            raise refuse("second", f"float32 with {key}.dtype=e4m3, whose largest scale is 448; and none with other dtypes")
        if self.second == "none" and self.order != Scale.order:
            raise refuse("order", f"{Scale.order}, or null: it is for {key}.second=float32")
        if self.dtype in ("e8m0", "e4m3") and self.times != Scale.times:
            raise refuse("times", f"{Scale.times}, or null, with {key}.dtype={self.dtype}")

    def __str__(self) -> str:
        """For example `float32`. Other fields are shown if they are not the default."""
        chosen = (value for field, value in vars(self).items() if field != "dtype" and value != getattr(Scale, field))
        return " ".join([self.dtype, *chosen])


FLOAT32 = Scale()
