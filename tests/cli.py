"""`python -m sqbench.run` as a person starts it: in a process and a folder of its own."""

import logging
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]


def tiny_run(model: Path, text: Path, results: Path, *more: str) -> list[str]:
    """Overrides of a run over the tiny model that takes less than a second once Python is up."""
    return [
        *("model=hf", f"model.name={model}", "data=text", f"data.path={text}", "data.window=64", "data.windows=4"),
        *("calibration.windows=4", "eval.resamples=100", "tracker=none", f"results_dir={results}", *more),
    ]


def environment(**changes: str) -> dict[str, str]:
    """Of a process that finds this checkout and nothing else: no network, no accelerator, no colours, one thread."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        **changes,
    }


def run(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; `changes` are environment variables."""
    line = [sys.executable, "-m", "sqbench.run", *arguments]
    return subprocess.run(line, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=300)


def start(*arguments: str, cwd: Path, **changes: str) -> subprocess.Popen[str]:
    """Start, and leave running in a session of its own; `changes` are environment variables."""
    line = [sys.executable, "-m", "sqbench.run", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=environment(**changes), stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def paste(line: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a printed command; `python` is this interpreter."""
    assert line.split()[:3] == ["python", "-m", "sqbench.run"]
    command = shlex.quote(sys.executable) + line.strip().removeprefix("python")
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether it came true in time; looked at a thousand times a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: its time of change and its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str


@contextmanager
def put_back() -> Iterator[None]:
    """What a command line changes for good in its own process (logging, signals, environment) is as it was after the block."""
    logger, before = logging.getLogger("sqbench"), dict(os.environ)
    state = logger.handlers[:], logger.propagate, logger.level
    terminate, argv = signal.getsignal(signal.SIGTERM), sys.argv
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = state[0], state[1]
        logger.setLevel(state[2])
        signal.signal(signal.SIGTERM, terminate)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)


def call(*arguments: str, capsys: pytest.CaptureFixture[str]) -> Ended:
    """The command line inside this process: a tenth of a second where a process of its own takes three."""
    from sqbench import run as module
    from sqbench.running import shared

    capsys.readouterr()
    shared._slots.clear()
    with put_back():
        sys.argv = ["sqbench.run", *arguments]
        try:
            module.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            shared._slots.clear()
    assert isinstance(code, int)
    said = capsys.readouterr()
    return Ended(code, said.out, said.err)


@dataclass
class Forked:
    """A command line in a process of its own that began as a fork of one in which everything is imported: it is there at once."""

    process: ForkServerProcess
    said: tuple[Path, Path]

    def wait(self, seconds: float = 120.0) -> Ended:
        """How it ended; it is killed when it does not end in time."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, *(path.read_text(encoding="utf-8") for path in self.said))

    def stopped(self) -> bool:
        """Whether SIGSTOP has stopped it, or a child of it."""
        return psutil.STATUS_STOPPED in map(_status, self._family())

    def resume(self) -> None:
        """Send SIGCONT."""
        for process in self._family():
            process.resume()

    def go_on(self) -> Ended:
        """How it ended after SIGCONT."""
        self.resume()
        return self.wait()

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


def _status(process: psutil.Process) -> str | None:
    """None once it is gone."""
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None


def fork(*arguments: str, cwd: Path, **changes: str) -> Forked:
    """Start the command line and leave it running; `changes` are environment variables."""
    said = cwd / "stdout.txt", cwd / "stderr.txt"
    process = _server().Process(target=_command_line, args=(arguments, cwd, said, changes), daemon=False)
    process.start()
    return Forked(process, said)


@cache
def _server() -> ForkServerContext:
    """A Python that has imported what a run needs, and waits to be forked."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}").items():
            patch.setenv(key, value)
        context.set_forkserver_preload(["cli", "sqbench.run", "sqbench.running.runner", "transformers.models.llama.modeling_llama"])
        forkserver.ensure_running()
    return context


def _command_line(arguments: Sequence[str], cwd: Path, said: tuple[Path, Path], changes: dict[str, str]) -> None:
    """What the fork does."""
    import torch

    from sqbench.run import main

    os.setsid()
    os.chdir(cwd)
    os.environ.update(changes)
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    torch.set_num_threads(1)
    sys.argv = ["sqbench.run", *arguments]
    main()
