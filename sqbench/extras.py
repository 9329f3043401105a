"""Packages that not every sweep needs: the extras of pyproject.toml. A missing one is named with the line that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqbench.errors import UserError


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around an import.

    Args:
        name: of the extra.
        what: needs it: a key and its value, or a command.

    Raises:
        UserError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise UserError(f"{what}: needs {package}, which is not installed; pip install 'sqbench[{name}]' installs it") from error
