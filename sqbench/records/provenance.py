"""The origin of a number (code, versions, hardware, command), and its cost."""

import logging
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqbench.faults import fault

log = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "timm",
    "datasets",
    "numpy",
    "pandas",
    "hydra-core",
    "omegaconf",
    "lm-eval",
    "safetensors",
)


@lru_cache(maxsize=1)
def _static() -> dict[str, Any]:
    """The parts that stay the same while this process lives."""
    import torch

    import sqbench

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "git": _git(Path(sqbench.__file__).parent),
        "versions": {
            "sqbench": sqbench.__version__,
            "python": platform.python_version(),
            **{name: installed(name) for name in PACKAGES},
        },
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": ", ".join(sorted({torch.cuda.get_device_name(gpu) for gpu in _gpus()})) or None,
        },
    }


def provenance(fingerprints: dict[str, Any], overrides: list[str], sweep: str | None, device: str) -> dict[str, Any]:
    """Everything a reader needs to make a record again, as plain data. `device` is where this point ran."""
    import torch

    static = _static()
    return {
        **static,
        "hardware": {**static["hardware"], "threads": torch.get_num_threads()},  # of this point, because a sweep may be over them
        "device": device,
        "fingerprints": fingerprints,
        "command": rerun_line(overrides),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "sweep": sweep,
    }


def rerun_line(overrides: list[str]) -> str:
    """The shell command that computes one point."""
    import shlex

    return " ".join(["python -m sqbench.run", *(shlex.quote(override) for override in overrides)])


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether the tree differs from it. None outside a checkout."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = ask("ls-files", "--error-unmatch", "__init__.py") is not None  # a wheel inside some other repository is not ours
    commit = ask("rev-parse", "HEAD") if tracked else None
    return None if commit is None else {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _gpus() -> range:
    """The numbers of the GPUs that this process sees."""
    import torch

    return range(torch.cuda.device_count())


_of_children = 0  # bytes


def child_held(peak: int) -> None:
    """Say how many bytes a child process held that has ended. It worked for the current point."""
    global _of_children
    _of_children = max(_of_children, peak)


def reset_peaks() -> None:
    """Forget earlier memory peaks of this process and of its GPUs. Its own peak needs a kernel that allows it (Linux)."""
    import torch

    global _of_children
    _of_children = 0
    if torch.cuda.is_initialized():
        for gpu in _gpus():
            torch.cuda.reset_peak_memory_stats(gpu)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peaks() -> dict[str, int]:
    """The most memory that this process held since `reset_peaks`, under the keys of a cost: resident, and on its GPUs if used.

    If a child process that it started held more, then that.
    """
    import torch

    on_gpu = {"peak_gpu_bytes": sum(map(torch.cuda.max_memory_allocated, _gpus()))} if torch.cuda.is_initialized() else {}
    return {"peak_rss_bytes": max(peak_rss_bytes(), _of_children), **on_gpu}


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since `reset_peaks`, or since it started."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Stopwatch:
    """Seconds per named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        fault(name)
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
            log.debug("%s: %.3f s", name, self.seconds[name])

    def total(self) -> dict[str, float]:
        """All stages, and `total` since the watch was made."""
        return {**self.seconds, "total": round(time.perf_counter() - self._start, 3)}
