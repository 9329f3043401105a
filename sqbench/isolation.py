"""A point in a process of its own: a crash, a kill, a hang or too much memory becomes one failed record, and the sweep goes on."""

import faulthandler
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf

from sqbench.config import LimitsConfig, register
from sqbench.errors import UserError
from sqbench.locks import Busy
from sqbench.quiet import quiet
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store
from sqbench.storage import written

log = logging.getLogger(__name__)

LOOK = 0.1  # seconds between looks at a child's memory
GRACE = 5.0  # seconds that a child gets to end after SIGTERM
LOG_LINES = 20  # of a dead child's log, in its record


@dataclass(frozen=True)
class Share:
    """What one of several points that run at once gets of a machine.

    Attributes:
        threads: of torch; None leaves its own choice.
        number: of the point in its sweep, by which it gets one of the GPUs that are there. None leaves it all of them.
    """

    threads: int | None = None
    number: int | None = None


def run_isolated(cfg: DictConfig, overrides: list[str], sweep: str | None = None, share: Share | None = None) -> Outcome:
    """`sqbench.runner.run_point` in a child process, within `cfg.limits`.

    What the points of one process share (weights, calibration, float results) a child finds in the caches on disk, or makes.

    Raises:
        UserError: what the point was told cannot work.
    """
    from sqbench import gpus  # torch, and all of the harness: not at the top of a command line
    from sqbench.runner import broken, identify, mirrored

    store, point = Store(cfg.results_dir), identify(cfg)
    if not cfg.force and store.finished(point.id):
        return Outcome(point.id, "skipped", overrides, summary=str(point))
    start, folder = time.perf_counter(), store.folder(point.id)
    earlier = written(folder / "stdout.log")
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # of joblib's workers; a child does not know that name
        multiprocessing.set_start_method("spawn", force=True)
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, locked as they are
    answers, answer = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(answer, OmegaConf.to_yaml(cfg), overrides, sweep, str(folder), share or Share()))
    place = {} if share is None or share.number is None else gpus.only(share.number)
    with env_override(place):  # a child has it from its first instruction
        child.start()
    answer.close()
    try:
        reason = watched(child, OmegaConf.to_object(cfg.limits), answers)  # type: ignore[arg-type]
    except BaseException:  # Ctrl-C: the child must not go on alone
        end(child)
        raise
    told = _told(answers)
    if "outcome" in told:
        return Outcome(**told["outcome"])
    if "refused" in told:
        raise UserError(told["refused"])
    message = reason or _death(child.exitcode)
    error = {"type": "Killed", "message": message, "traceback": "\n".join(_last_lines(folder / "stdout.log", earlier))}
    try:
        device = "".join(f"{key}={value}" for key, value in place.items()) or str(cfg.device)
        record = broken(point, error, overrides, sweep, time.perf_counter() - start, device)
        with store.claim(point.id):
            store.write(record)
        mirrored(record, None, cfg, sweep)
    except Busy as busy:  # another process has taken over the dead one's claim, and computes it
        return Outcome(point.id, "busy", overrides, summary=f"{point}: {busy}")
    except OSError as failure:
        message = f"{message}; cannot write: {failure}"
    return Outcome(point.id, "failed", overrides, time.perf_counter() - start, message, f"{point}: {message}")


def watched(child: BaseProcess, limits: LimitsConfig, answers: Connection) -> str:
    """Wait for a child's end, and end it when it goes over a limit: which one, empty if none."""
    deadline = float("inf") if limits.seconds is None else time.monotonic() + limits.seconds
    most = float("inf") if limits.memory_gb is None else limits.memory_gb * 1e9
    while child.is_alive():
        if time.monotonic() > deadline:
            end(child)
            return f"took more than limits.seconds={limits.seconds:g}"
        if most < float("inf") and (used := resident(child.pid)) > most:
            end(child)
            return f"held {used / 1e9:.2f} GB, more than limits.memory_gb={limits.memory_gb:g}"
        if wait([child.sentinel, answers], timeout=LOOK) == [answers]:
            child.join(LOOK)  # it has told its outcome, and is about to end
    return ""


def resident(pid: int | None) -> int:
    """Bytes that a process and its children have in memory; 0 once they are gone."""
    try:
        parent = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def end(child: BaseProcess) -> None:
    """Stop a child and all that it started: with SIGTERM, then with SIGKILL."""
    try:
        started = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    child.terminate()
    child.join(GRACE)
    if child.is_alive():
        child.kill()
        child.join()
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _child(answer: Connection, config: str, overrides: list[str], sweep: str | None, folder: str, share: Share) -> None:
    """Run the point and tell the parent what came of it."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends this process
    quiet()
    register()
    import torch

    from sqbench.config import RunConfig
    from sqbench.runner import run_point

    if share.threads is not None:
        torch.set_num_threads(share.threads)
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(config))
    assert isinstance(cfg, DictConfig)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "stdout.log").open("a", encoding="utf-8") as crash:
        faulthandler.enable(crash)  # where in Python it was when native code broke
        try:
            told: dict[str, Any] = {"outcome": asdict(run_point(cfg, overrides, sweep))}
        except UserError as error:
            told = {"refused": str(error)}
        faulthandler.disable()
    answer.send_bytes(json.dumps(told).encode())
    answer.close()


def _follow_parent() -> None:
    """End with the parent, however it ends: nobody would wait for this point."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _told(answers: Connection) -> dict[str, Any]:
    """What the child said before it ended; empty if it could not."""
    try:
        return dict(json.loads(answers.recv_bytes())) if answers.poll() else {}
    except (EOFError, OSError):
        return {}


def _death(exitcode: int | None) -> str:
    """How a process ended that said nothing."""
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode} and no word"
    name = signal.Signals(-exitcode).name
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _last_lines(path: Path, earlier: int | None) -> Sequence[str]:
    """The end of a log, if it was written since it was as `written` said then."""
    if written(path) in (None, earlier):
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
