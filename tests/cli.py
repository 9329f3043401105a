"""`python -m sqbench.run` as a person starts it: in a process and a folder of its own."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start, and leave running in a session of its own."""
    line = [sys.executable, "-m", "sqbench.run", *arguments]
    return subprocess.Popen(
        line, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


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
    from sqbench import runner

    capsys.readouterr()
    runner._slots.clear()
    with put_back():
        sys.argv = ["sqbench.run", *arguments]
        try:
            module.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            runner._slots.clear()
    assert isinstance(code, int)
    said = capsys.readouterr()
    return Ended(code, said.out, said.err)
