"""A child process that computes points one after the other. It can be killed without harm to its parent."""

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

from sqbench.config import LimitsConfig
from sqbench.console.quiet import quiet
from sqbench.errors import UserError

LOOK = 0.1  # seconds between looks at a child's memory
GRACE = 5.0  # seconds that a child gets to end after SIGTERM
DYING = 60.0  # seconds that a dead child may take to be gone, while its memory is freed or written to a core file


class Child:
    """A running child process. It starts with its final environment."""

    def __init__(self, place: Mapping[str, str]) -> None:
        if multiprocessing.get_start_method(allow_none=True) == "loky":  # set in joblib's workers; a child does not know that name
            multiprocessing.set_start_method("spawn", force=True)
        context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads
        self._pipe, other = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(other,))
        with env_override(dict(place)):
            self._process.start()
        other.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def compute(self, point: dict[str, Any], limits: LimitsConfig) -> dict[str, Any]:
        """The result of a point: `outcome`, `refused` with the error in its configuration, or `died` with the cause.

        Args:
            point: the arguments of `_point`, as JSON values.
            limits: the child is ended when it exceeds one of them.
        """
        with suppress(OSError):  # the child has died in the meantime, which is handled below
            self._pipe.send_bytes(json.dumps(point).encode())
        over = self._watched(limits)
        try:
            if self._pipe.poll():
                return dict(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):  # the pipe of a dead child
            pass
        self._process.join(DYING)
        return {"died": over or _death(self._process.exitcode)}

    def end(self) -> None:
        """Stop the child and the processes that it started: with SIGTERM, then with SIGKILL."""
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
        """Wait until the child answers or ends. End it if it exceeds a limit, and return which one; empty if none."""
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
    """The loop of the child: it computes points until its parent closes the pipe."""
    threading.Thread(target=follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives Ctrl-C too, and ends this process
    quiet()
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


def _point(config: dict[str, Any], overrides: list[str], sweep: str | None, folder: str, threads: int | None) -> dict[str, Any]:
    """Compute a point from its configuration. If native code crashes, Python's stack goes to the log in `folder`."""
    import torch

    from sqbench.running.resolved import restored
    from sqbench.running.runner import run_point
    from sqbench.running.shared import forget

    if threads is not None:
        torch.set_num_threads(threads)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "stdout.log").open("a", encoding="utf-8") as crash:
        faulthandler.enable(crash)
        try:
            return {"outcome": asdict(run_point(restored(config), overrides, sweep))}
        except UserError as error:
            return {"refused": str(error)}
        finally:
            faulthandler.disable()
            if torch.cuda.is_initialized():  # the next point on this GPU may belong to another worker, and needs the memory
                with suppress(RuntimeError):  # this point has broken the GPU, as its outcome says
                    forget()


def follow_parent() -> None:
    """End this process when the parent ends in any way, as nobody would wait for its result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _resident(pid: int | None) -> int:
    """The resident bytes of a process and its children; 0 once they are gone."""
    try:
        parent = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def _death(exitcode: int | None) -> str:
    """A message on how a process without an answer ended."""
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode} and no word"
    name = signal.Signals(-exitcode).name
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
