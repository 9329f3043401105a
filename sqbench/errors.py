"""The exception whose text is meant for the user, and parts of its messages."""

from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. The message names the key, the value and valid values."""


def counted(names: Iterable[str], what: str) -> str:
    """The number of names, what they are, and the first three of them.

    >>> counted(["a", "b", "c", "d"], "tensors missing")
    '4 tensors missing (a, b, c, ...)'
    """
    listed = list(names)
    return f"{len(listed)} {what} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})"


def closest(name: str, names: object) -> str:
    """The tail of an "unknown name" message for names too many to list: the nearest, or the first.

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
