"""The start and end of every command line. An error that the user can fix is one plain line on standard error."""

import os
import re
import sys
from collections.abc import Callable
from functools import partial

import hydra
from hydra.errors import HydraException
from hydra.types import TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sqbench import __version__
from sqbench.config import CONF_DIR
from sqbench.console.composition import PLUGINS, brings, by_choice
from sqbench.console.progress import console
from sqbench.errors import UserError

FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable: 1 shows the traceback of every error


def application(config_name: str, task: TaskFunction, first: Callable[[], None] = lambda: None) -> int:
    """Run a Hydra application, whose task gets the configuration of the command line in any process. Return the exit status.

    Args:
        first: is called before anything is composed.
    """

    def work() -> None:
        first()
        flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
        sys.argv[1:] = [*flags, *(word for word in sys.argv[1:] if word not in flags)]  # Hydra reads no key=value after a flag
        with by_choice():
            hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(task)()

    return answered(work)


def reader(config_name: str, work: Callable[[DictConfig], int | None]) -> int:
    """Like `application`, for work in this process. It runs after Hydra has ended, because Hydra adds lines to errors of a task."""
    found: list[DictConfig] = []
    status = application(config_name, found.append)
    return status or max((answered(partial(work, cfg)) for cfg in found), default=0)


def answered(work: Callable[[], int | None]) -> int:
    """Do the work. Return its own exit status, 2 after printing an error that the user can fix, or 130 after Ctrl-C."""
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"sqbench {__version__}\n")
        return 0
    asked = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra raises its errors instead of printing them
    try:
        return work() or 0
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if asked == "1":
            raise
        return refuse(error)
    except OSError as error:  # from Hydra's own files too: a full disk, a folder without write permission
        if asked == "1":
            raise
        return refuse(UserError(str(error)))
    except KeyboardInterrupt:
        return 130  # as sweep.INTERRUPTED
    finally:
        if asked is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = asked


def refuse(error: Exception) -> int:
    """Print what is wrong with the input, and return the exit status 2."""
    said = str(error) if isinstance(error, UserError) else _plain(error)
    console.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def _plain(error: Exception) -> str:
    """The message of Hydra or OmegaConf on a file or a value, in one line."""
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}"
    cause = f"; {_plain(error.__cause__)}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    named = re.findall(r"launcher/(\w+)", str(error))
    plugin = "".join(brings(extra) for name, extra in PLUGINS.items() if name in named)
    return f"{' '.join(str(error).split())}{cause}{plugin}".removeprefix("; ")
