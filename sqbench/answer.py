"""How a command line that reads its own arguments ends: an exit status, and on standard error what the user can fix."""

import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sqbench.errors import UserError


def answered(work: Callable[[], None]) -> int:
    """Do the work; 0, or 2 for what the user can fix, which is said, or 130 for Ctrl-C."""
    try:
        work()
    except (UserError, HydraException) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OmegaConfBaseException as error:
        sys.stderr.write(f"error: {error.full_key}: {str(error.msg).splitlines()[0]}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
