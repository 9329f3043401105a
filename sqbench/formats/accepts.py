"""Sets of formats, as data. What nobody declared is refused, so no kernel and no runtime gets a format that it does not know."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqbench.formats.format import Format


@dataclass(frozen=True)
class Multiples:
    """The multiples of a size, and null."""

    size: int

    def __contains__(self, value: object) -> bool:
        return value is None or (isinstance(value, int) and value % self.size == 0)

    def __str__(self) -> str:
        return f"of a multiple of {self.size}"


@dataclass(frozen=True)
class Accepts:
    """A set of formats.

    Attributes:
        who: the kernel and what it reads, as the beginning of a sentence: "8-bit products take weights".
        values: field of `Format` -> the values that are in the set. A field without an entry must have its default, and so must a
            field that `Format` gets one day.
    """

    who: str
    values: Mapping[str, Collection[Any] | Multiples] = field(default_factory=dict)

    def refusal(self, fmt: Format) -> str | None:
        """The reason why a format is not in the set, as a sentence. None if it is."""
        for one in fields(fmt):
            if one.name == "amax":  # is no choice: it comes with a tensor, where scales have a second level
                continue
            value, allowed = getattr(fmt, one.name), self.values.get(one.name, (one.default,))
            if value not in allowed:
                return f"{self.who} with {one.name} {_listed(allowed)}, not {_word(value)}"
        return None


def _listed(allowed: Collection[Any] | Multiples) -> str:
    if isinstance(allowed, Multiples):
        return str(allowed)
    if isinstance(allowed, range) and len(allowed) > 1:
        return f"{allowed[0]} to {allowed[-1]}"
    return " or ".join(map(_word, allowed))


def _word(value: Any) -> str:
    """A value as people type it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
