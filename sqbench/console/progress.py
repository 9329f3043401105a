"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
log = logging.getLogger(__name__)

console = Console(stderr=True)  # progress and messages
output = Console(width=None if sys.stdout.isatty() else 110)  # results, which may be piped
PLAIN_EVERY = 15.0  # seconds between plain lines
_sweep: tuple[int, int] | None = None


def place_in_sweep(done: int, total: int) -> None:
    """Set how many points of its sweep are done, for the bars of this process."""
    global _sweep
    _sweep = (done, total)


def track(items: Iterable[T], what: str, total: int | None = None) -> Generator[T, None, None]:
    """Yield the items and show the progress. Give `total` if the items have no length."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    if not console.is_terminal:
        yield from _plain(items, what, total)
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as bar:
        if _sweep is not None:
            bar.add_task("sweep", completed=_sweep[0], total=_sweep[1])
        yield from bar.track(items, total=total, description=what)


def _plain(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    said = time.monotonic()
    for count, item in enumerate(items):
        if time.monotonic() - said > PLAIN_EVERY:
            said = time.monotonic()
            log.info("%s: %d%s", what, count, f" of {total}" if total else "")
        yield item
