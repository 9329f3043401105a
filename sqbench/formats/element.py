"""Elements: the numbers that a code can stand for, before the scale multiplies them. Data only, no tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Integer:
    """Signed integers. `Format` decides which codes are used."""

    widths: tuple[int, ...] = tuple(range(2, 9))


@dataclass(frozen=True)
class Float:
    """Small floating-point numbers: a sign bit, exponent bits with the bias 2^(e-1) - 1, mantissa bits, and subnormal numbers.

    Larger numbers become the largest one. Rounding is to nearest, ties to the even code.

    Attributes:
        exponent, mantissa: the number of bits of each.
        largest: the largest finite number.
        dtype: torch's name of the same numbers, or "" where torch has none. Only these have infinities or NaN.
    """

    exponent: int
    mantissa: int
    largest: float
    dtype: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        return (1 + self.exponent + self.mantissa,)

    @property
    def least_exponent(self) -> int:
        """The exponent of the smallest normal number. Subnormal numbers have the same distance as the numbers above it."""
        return 2 - 2 ** (self.exponent - 1)


@dataclass(frozen=True)
class Table:
    """The numbers of a table, ascending. A number half way between two entries gets the lower one."""

    values: tuple[float, ...]
    widths: tuple[int, ...]

    @property
    def largest(self) -> float:
        return self.values[-1]


# Dettmers et al., 2023, appendix E: quantiles of the normal distribution, as the float32 numbers of the authors' code.
NF4 = Table(
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    (4,),
)  # fmt: skip

# e4m3, e5m2: OCP OFP8 (2023). e3m2, e2m3, e2m1: OCP Microscaling Formats (2023). e4m3 has no infinity.
ELEMENTS: dict[str, Integer | Float | Table] = {
    "int": Integer(),
    "e4m3": Float(4, 3, 448.0, "float8_e4m3fn"),
    "e5m2": Float(5, 2, 57344.0, "float8_e5m2"),
    "e3m2": Float(3, 2, 28.0),
    "e2m3": Float(2, 3, 7.5),
    "e2m1": Float(2, 1, 6.0),
    "nf4": NF4,
}
