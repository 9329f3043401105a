"""Places where tests break a run on purpose. Nothing happens unless SQBENCH_FAULT names the place, as in `kill@after record.json`.

Kinds: `kill`, `segv`, `term`, `int` and `stop` send the process that signal, `hang` never returns, `full` is a full disk, `eat`
holds ever more memory.
With SQBENCH_FAULT_ONCE=FILE a fault happens once, in the first process that comes to it. FILE records that it has happened.
"""

import errno
import os
import signal
import time
from pathlib import Path

FAULT, ONCE = "SQBENCH_FAULT", "SQBENCH_FAULT_ONCE"
SIGNALS = {name: signal.Signals[f"SIG{name.upper()}"] for name in ("kill", "segv", "term", "int", "stop") if os.name == "posix"}


def fault(place: str) -> None:
    """Break here if `place` is the chosen one: `before record.json`, `after record.json`, or the name of a stage."""
    kind, _, chosen = os.environ.get(FAULT, "").partition("@")
    if not kind or chosen != place or not _first():
        return
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
        return  # after `stop`, once the process is continued
    held = []
    while True:
        if kind == "eat":
            held.append(bytearray(os.urandom(1_000_000)) * 50)
        time.sleep(0.02)


def _first() -> bool:
    """Whether the fault may happen: it may happen often, or has not happened yet."""
    if (remembered := os.environ.get(ONCE)) is None:
        return True
    try:
        Path(remembered).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
