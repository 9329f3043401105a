"""The one exception whose text is meant for the person at the keyboard."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: the message names the key, the value and what would work."""


def counted(names: Iterable[str], what: str) -> str:
    """How many there are, of what, and the first three of them.

    >>> counted(["a", "b", "c", "d"], "tensors missing")
    '4 tensors missing (a, b, c, ...)'
    """
    listed = list(names)
    return f"{len(listed)} {what} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})"


def closest(name: str, names: object) -> str:
    """The tail of an "unknown name" message where there are too many names to list: the nearest, or the first.

    >>> closest("mlp.fc3", ["attn.qkv", "mlp.fc1"])
    'did you mean mlp.fc1?'
    """
    import difflib

    listed = [str(item) for item in names]  # type: ignore[attr-defined]
    close = difflib.get_close_matches(name, listed, n=3, cutoff=0.4)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(listed[:6])}{', ...' * (len(listed) > 6)}"


def known(name: str, names: object) -> str:
    """The tail of an "unknown name" message: the sorted known names, the closest first if one is close.

    >>> known("smothquant", ["awq", "smoothquant"])
    'did you mean smoothquant? known: awq, smoothquant'
    """
    import difflib

    listed = sorted(str(item) for item in names)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(name, listed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(listed)}"
