"""How scales are found and stored. Data only, no tensors."""

from dataclasses import dataclass

from sqbench.errors import UserError

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}  # dtype -> bytes
RULES = ("absmax",)
SECOND = ("none",)


@dataclass(frozen=True)
class Scale:
    """How the values of a block get their scale.

    Attributes:
        dtype: the dtype that scales are rounded to and stored in.
        rule: how a scale follows from a clipping range. `absmax` divides the range by the number of steps.
        second: a scale of the scales. `none` is no second level.
    """

    dtype: str = "float32"
    rule: str = "absmax"
    second: str = "none"

    @property
    def bytes(self) -> int:
        """Bytes of one scale."""
        return DTYPES[self.dtype]

    def check(self, key: str) -> None:
        """Raise UserError that names `key` if a value is unknown."""
        for field, names in (("dtype", DTYPES), ("rule", RULES), ("second", SECOND)):
            if (value := getattr(self, field)) not in names:
                raise UserError(f"{key}.{field}={value}: must be one of {', '.join(names)}")

    def __str__(self) -> str:
        """For example `float32`. Other fields are shown if they are not the default."""
        return " ".join([self.dtype, *(value for value in (self.rule, self.second) if value not in (Scale.rule, Scale.second))])


FLOAT32 = Scale()
