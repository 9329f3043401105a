"""A plan makes nothing: what it would have to train or download is told instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_active: ContextVar[bool] = ContextVar("planning", default=False)


class Absent(Exception):
    """Something is not there, and a plan does not make it. The message says what happens first: `its model is trained first`."""


@contextmanager
def planning(active: bool) -> Iterator[None]:
    """A block in which nothing is trained or downloaded, if `active`."""
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> bool:
    """Whether a plan is being made."""
    return _active.get()


def before(step: str) -> None:
    """Stand before whatever trains or downloads.

    Raises:
        Absent: a plan is being made.
    """
    if active():
        raise Absent(step)
