"""The differences between two identities, or between any two parts of records."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqbench.storage.files import canonical_json

_LONG = 40  # characters; a longer value is a digest, and its beginning is enough to tell it apart


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and short texts.

    >>> dict(flat({"scheme": {"weights": {"bits": 4}, "activations": None}}))
    {'scheme.weights.bits': '4'}
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else key)
    elif value is not None:  # null and absent are the same
        text = value if isinstance(value, str) else canonical_json(value)
        yield name, text if len(text) <= _LONG else text[:12]


def changes(one: Any, other: Any) -> list[tuple[str, str, str]]:
    """Dotted name and both texts of every setting that differs. A text is empty where a side has no such setting.

    >>> changes({"bits": 4, "seed": 0}, {"bits": 8, "seed": 0, "alpha": 0.5})
    [('alpha', '', '0.5'), ('bits', '4', '8')]
    """
    left, right = dict(flat(one)), dict(flat(other))
    names = sorted(left.keys() | right.keys())
    return [(name, left.get(name, ""), right.get(name, "")) for name in names if left.get(name) != right.get(name)]
