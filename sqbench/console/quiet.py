"""Logging. One logger writes to standard error and to a point's file. Other libraries are silent unless something is wrong."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Loggers of libraries whose warnings do not help a user.
CHATTY = (
    "lm_eval",  # it warns that the model is given as an object
    "torch.utils._pytree",  # transformers imports an installed torchao, which registers its enums in a deprecated way
)


_said: set[str] = set()


def _once(record: logging.LogRecord) -> bool:
    """Whether a line goes to the screen. A warning goes there once, even if several points give it."""
    if record.levelno < logging.WARNING:
        return True
    text = record.getMessage()
    new = text not in _said
    _said.add(text)
    return new


def begin() -> None:
    """Begin a new command, in which every warning is new."""
    _said.clear()


def quiet(verbose: bool = False) -> None:
    """Set up logging. Unless `verbose`, silence other libraries. Call it before they are imported."""
    logger = logging.getLogger("sqbench")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s" if verbose else "%(message)s"))
    handler.setLevel(logging.DEBUG if verbose else logging.INFO)
    handler.addFilter(_once)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if verbose:
        return
    for key, value in {
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Write everything that sqbench logs inside the block to a file too."""
    handler = _LogFile(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("sqbench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log file. Lines that cannot be written are lost, because a log must not fail its point."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print nothing. The default is a stack trace for every line."""
