"""Points in their own process. A crash, a kill, a hang or too much memory becomes a failed record, and the sweep goes on."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from sqbench.errors import UserError
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store
from sqbench.running.child import Child
from sqbench.storage.files import written
from sqbench.storage.locks import Busy

if TYPE_CHECKING:
    from sqbench.running.resolved import Resolved

LOG_LINES = 20  # of a dead child's log, in its record


@dataclass(frozen=True)
class Share:
    """The share of a machine for one of several points that run at once.

    Attributes:
        threads: of torch; None leaves the choice to torch.
        number: of the point in its sweep. It chooses one of the GPUs; None leaves all of them visible.
    """

    threads: int | None = None
    number: int | None = None


def run_isolated(resolved: "Resolved", overrides: list[str], sweep: str | None = None, share: Share | None = None) -> Outcome:
    """Run `sqbench.running.runner.run_point` in a child process, within `limits`.

    The child is kept for the next point, which finds weights, calibration and float results in its memory. GPU memory is freed. The
    child is not kept if its point failed, because the failure may have broken the process, as a CUDA error does. It is not kept
    under `limits.memory_gb` either, which is a limit of one point.

    Raises:
        UserError: the configuration of the point cannot work.
    """
    from sqbench.running import gpus  # imports torch and the whole harness: not at the top of a command line
    from sqbench.running.point import identify
    from sqbench.running.runner import broken, mirrored

    options, point, share = resolved.options, identify(resolved), share or Share()
    store = Store(options.results_dir)
    if not options.force and store.finished(point.id):
        return Outcome(point.id, "skipped", overrides, summary=str(point))
    start, folder, before = time.perf_counter(), store.folder(point.id), store.written(point.id)
    earlier = written(folder / "stdout.log")
    place = {gpus.VISIBLE: os.environ[gpus.VISIBLE]} if gpus.VISIBLE in os.environ else {}
    if share.number is not None:
        place |= gpus.only(share.number)
    asked = {"config": resolved.config, "overrides": overrides, "sweep": sweep, "folder": str(folder), "threads": share.threads}
    try:
        told = _child(place).compute(asked, options.limits)
    except BaseException:  # Ctrl-C: the child must not go on alone
        end_child()
        raise
    if "outcome" not in told or told["outcome"]["state"] == "failed" or options.limits.memory_gb is not None:
        end_child()
    if "outcome" in told:
        return Outcome(**told["outcome"])
    if "refused" in told:
        raise UserError(told["refused"])
    message = told["died"]
    error = {"type": "Killed", "message": message, "traceback": "\n".join(_last_lines(folder / "stdout.log", earlier))}
    try:
        device = "".join(f"{key}={value}" for key, value in place.items() if value) or resolved.device
        record = broken(point, error, overrides, sweep, time.perf_counter() - start, device)
        with store.claim(point.id):
            if store.written(point.id) != before and store.finished(point.id):  # it died after writing, or another wrote it
                return Outcome(point.id, "done", overrides, time.perf_counter() - start, summary=f"{point}: then {message}")
            store.write(record)
        mirrored(record, None, options, sweep)
    except Busy as busy:  # another process has taken over the dead one's claim, and computes it
        return Outcome(point.id, "busy", overrides, summary=f"{point}: {busy}")
    except OSError as failure:
        message = f"{message}; cannot write: {failure}"
    return Outcome(point.id, "failed", overrides, time.perf_counter() - start, message, f"{point}: {message}")


_kept: tuple[Mapping[str, str], Child] | None = None  # the child of this process, and the environment it started with


def _child(place: Mapping[str, str]) -> Child:
    """A child that sees the GPUs of `place`: the kept one, or a new one."""
    global _kept
    if _kept is None or _kept[0] != place or not _kept[1].alive:
        end_child()
        _kept = place, Child(place)
        Finalize(None, end_child, exitpriority=10)  # also in a worker of joblib, which would wait for its children before `atexit`
    return _kept[1]


def end_child() -> None:
    """End the child of this process, if it has one."""
    global _kept
    if _kept is not None:
        _kept[1].end()
    _kept = None


def _last_lines(path: Path, earlier: int | None) -> Sequence[str]:
    """The last lines of a log. Empty if it was not written since `earlier`, a time from `written`."""
    if written(path) in (None, earlier):
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
