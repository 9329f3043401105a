"""Libraries that speak only when something is wrong, and our own log lines: one logger, to standard error and a point's file."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Loggers of libraries whose warnings say nothing to a user.
CHATTY = (
    "lm_eval",  # a model object is a model object
    "torch.utils._pytree",  # torchao, which transformers imports where it is installed, registers its enums the old way
)


_said: set[str] = set()


def _once(record: logging.LogRecord) -> bool:
    """Whether a line goes to the screen: a warning goes there once, whatever the number of points that give it."""
    if record.levelno < logging.WARNING:
        return True
    text = record.getMessage()
    new = text not in _said
    _said.add(text)
    return new


def begin() -> None:
    """A new command, in which every warning is new."""
    _said.clear()


def quiet(verbose: bool = False) -> None:
    """Set up logging; unless `verbose`, silence other libraries' progress bars and chatter. Call it before they are imported."""
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
    """Everything sqbench logs inside the block also goes to a file."""
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
    """Lines that find no room are lost: whether the point succeeds is not up to its log."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing; by default it would be a stack trace a line."""
