"""The plan mode, in which nothing is trained or downloaded. The plan names such steps instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_active: ContextVar[bool] = ContextVar("planning", default=False)


class Absent(Exception):
    """Something is missing, and a plan does not make it. The message names the step: `its model is trained first`."""


@contextmanager
def planning(active: bool) -> Iterator[None]:
    """Make a plan inside the block, if `active`."""
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> bool:
    """Whether a plan is being made."""
    return _active.get()


def before(step: str) -> None:
    """Announce a step that trains or downloads, right before it.

    Raises:
        Absent: a plan is being made.
    """
    if active():
        raise Absent(step)
