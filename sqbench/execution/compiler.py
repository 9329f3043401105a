"""The C kernels in `kernels/`, compiled on first use for the CPU that runs them, and loaded.

The alternative would be a wheel for every instruction set. Every machine on which torch.compile works has a compiler. Without a
compiler, callers use other kernels (`native.unavailable`).
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from sqbench.storage.files import atomic_path

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
# No contraction of a product and a sum into one instruction: results would differ from torch's.
FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
COMPILERS = ("cc", "gcc", "clang")

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_ARGUMENTS = {
    "int8_linear": [_POINTER] * 5 + [_LONG] + [_POINTER] * 3 + [_LONG] * 3 + [_INT] * 2 + [_FLOAT] * 4 + [_INT],
    "weight_only_linear": [_POINTER] * 6 + [_LONG] * 4 + [_INT] * 2,
    "dequantize": [_POINTER] * 4 + [_LONG] * 3 + [_INT] * 2,
    "quantize_rows": [_POINTER] * 4 + [_LONG] * 2 + [_INT] * 2 + [_FLOAT] * 3 + [_INT],
    "quantize_static": [_POINTER] * 2 + [_FLOAT] * 2 + [_LONG, _INT] + [_FLOAT] * 2 + [_INT],
}


class Unavailable(Exception):
    """The reason why there are no kernels here, as a clause for a record."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | Unavailable:
    """The library, or the reason why there is none. This is decided once per process.

    The library is compiled if this machine has not compiled it before.
    """
    try:
        if os.environ.get("SQBENCH_NATIVE", "1") == "0":
            raise Unavailable("switched off by SQBENCH_NATIVE=0")
        if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
            raise Unavailable("needs a CPU with AVX2")
        library = _open(_compiled(_compiler()))
        _share_threads(library)
    except Unavailable as reason:
        log.info("no native kernels: %s", reason)
        return reason
    for function, types in _ARGUMENTS.items():
        getattr(library, function).argtypes, getattr(library, function).restype = types, None
    return library


def unavailable() -> str | None:
    """The reason why there are no kernels here, as a clause for a record. None if there are.

    The first call may compile for some seconds.
    """
    loaded = load()
    return str(loaded) if isinstance(loaded, Unavailable) else None


def library() -> ctypes.CDLL:
    """The kernels, for callers that have checked `unavailable`."""
    loaded = load()
    assert isinstance(loaded, ctypes.CDLL), f"no native kernels: {loaded}"
    return loaded


def _compiler() -> list[str]:
    """The command that compiles C: $CC if it is set, else the first compiler on the PATH."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise Unavailable(f"no C compiler: CC={chosen[0]} is not there (unset CC, or name gcc or clang)")
        return chosen
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    if found is None:
        raise Unavailable("no C compiler: install gcc or clang")
    return [found]


def _compiled(compiler: list[str]) -> Path:
    """The library in the cache, or in a temporary folder where the cache cannot be written."""
    name = f"kernels-{_key(compiler)}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqbench"
    if (cache / name).is_file():
        return cache / name
    try:
        return _compile(compiler, cache / name)
    except OSError as error:
        log.info("cannot write to %s (%s): kernels are compiled again in every process", cache, error)
        return _compile(compiler, Path(tempfile.mkdtemp(prefix="sqbench-")) / name)


def _key(compiler: list[str]) -> str:
    """A digest of everything that decides the binary: sources, compiler and CPU.

    Machines with different CPUs may share the cache, if it is in a home folder.
    """
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))]
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith("flags")), lines[0])
    about = "\n".join([*FLAGS, *compiler, _run([*compiler, "--version"]), flags])
    return hashlib.sha256(b"\n".join([*sources, about.encode()])).hexdigest()[:16]


def _compile(compiler: list[str], path: Path) -> Path:
    """Compile to `path`, whole or not at all, even if other processes do the same at the same time."""
    with atomic_path(path) as part:
        _run([*compiler, *FLAGS, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(part), "-lm"])
    return path


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler failed: {error}") from error
    if done.returncode:
        raise Unavailable(f"the compiler failed: {' '.join(command[:1])}: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"cannot load {path}: {error} (delete it, and it is compiled again)") from error


def _share_threads(library: ctypes.CDLL) -> None:
    """Give the kernels the OpenMP runtime that torch is linked to. A second runtime would compete with it for the cores."""
    torch_library = ctypes.CDLL(torch._C.__file__)
    try:
        entries = [getattr(torch_library, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except AttributeError as error:
        raise Unavailable(f"torch has no OpenMP runtime to share: {error}") from error
    library.use_threads_of(*(ctypes.cast(entry, ctypes.c_void_p) for entry in entries))
