"""A process that computes one point after the other for its parent, and may be killed without harm to it."""

import faulthandler
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf

from sqbench.config import LimitsConfig, register
from sqbench.errors import UserError
from sqbench.quiet import quiet

LOOK = 0.1  # seconds between looks at a child's memory
GRACE = 5.0  # seconds that a child gets to end after SIGTERM
DYING = 60.0  # seconds that a dead one may take to be gone: its memory is given back, or written to a core file


class Child:
    """A running child process. Start it with the environment it is to have from its first instruction."""

    def __init__(self, place: Mapping[str, str]) -> None:
        if multiprocessing.get_start_method(allow_none=True) == "loky":  # of joblib's workers; a child does not know that name
            multiprocessing.set_start_method("spawn", force=True)
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, locked as they are
        self._pipe, other = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(other,))
        with env_override(dict(place)):
            self._process.start()
        other.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def compute(self, point: dict[str, Any], limits: LimitsConfig) -> dict[str, Any]:
        """What a point comes to: its `outcome`, `refused` with what is wrong in its configuration, or `died` with how.

        Args:
            point: the arguments of `_point`, as JSON can say them.
            limits: what ends the child when it goes over one of them.
        """
        with suppress(OSError):  # it died since it was last looked at, as is seen below
            self._pipe.send_bytes(json.dumps(point).encode())
        over = self._watched(limits)
        try:
            if self._pipe.poll():
                return dict(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):  # a dead one's end of the pipe
            pass
        self._process.join(DYING)
        return {"died": over or _death(self._process.exitcode)}

    def end(self) -> None:
        """Stop it and all that it started: with SIGTERM, then with SIGKILL."""
        try:
            started = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            started = []
        self._process.terminate()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _watched(self, limits: LimitsConfig) -> str:
        """Wait until it answers or ends, and end it when it goes over a limit: which one, empty if none."""
        deadline = float("inf") if limits.seconds is None else time.monotonic() + limits.seconds
        most = float("inf") if limits.memory_gb is None else limits.memory_gb * 1e9
        while not wait([self._process.sentinel, self._pipe], timeout=LOOK):
            if time.monotonic() > deadline:
                self.end()
                return f"took more than limits.seconds={limits.seconds:g}"
            if most < float("inf") and (used := _resident(self._process.pid)) > most:
                self.end()
                return f"held {used / 1e9:.2f} GB, more than limits.memory_gb={limits.memory_gb:g}"
        return ""


def _serve(pipe: Connection) -> None:
    """What the child does: points, until its parent wants no more."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends this process
    quiet()
    register()
    while True:
        try:
            asked = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            told = _point(**asked)
        except Exception as error:  # noqa: BLE001 (the parent has to hear of it, a full disk for one)
            told = {"died": f"{type(error).__name__}: {error}"}
        pipe.send_bytes(json.dumps(told).encode())


def _point(config: str, overrides: list[str], sweep: str | None, folder: str, threads: int | None) -> dict[str, Any]:
    """Compute a point, of a configuration as YAML. Where native code breaks, Python's stack goes to the log in `folder`."""
    import torch

    from sqbench.config import RunConfig
    from sqbench.runner import forget, run_point

    if threads is not None:
        torch.set_num_threads(threads)
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(config))
    assert isinstance(cfg, DictConfig)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "stdout.log").open("a", encoding="utf-8") as crash:
        faulthandler.enable(crash)
        try:
            return {"outcome": asdict(run_point(cfg, overrides, sweep))}
        except UserError as error:
            return {"refused": str(error)}
        finally:
            faulthandler.disable()
            if torch.cuda.is_initialized():  # the next point on this GPU may be another worker's, and needs the room
                with suppress(RuntimeError):  # of a GPU that this point has broken: its outcome says so
                    forget()


def _follow_parent() -> None:
    """End with the parent, however it ends: nobody would wait for this point."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _resident(pid: int | None) -> int:
    """Bytes that a process and its children have in memory; 0 once they are gone."""
    try:
        parent = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def _death(exitcode: int | None) -> str:
    """How a process ended that said nothing."""
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode} and no word"
    name = signal.Signals(-exitcode).name
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
