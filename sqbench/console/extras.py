"""Optional packages: the extras of pyproject.toml. The error for a missing one has the line that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqbench.errors import UserError


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Report a missing package in an import inside the block.

    Args:
        name: of the extra.
        what: the key and value, or the command, that needs it.

    Raises:
        UserError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise UserError(f"{what}: needs {package}, which is not installed; pip install 'sqbench[{name}]' installs it") from error
