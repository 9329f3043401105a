"""Kernels are compiled once a machine; where they cannot be, the reason is told and nothing breaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import needs_kernels

from sqbench.execution import compiler


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a new process with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SQBENCH_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler, "load", compiler.load.__wrapped__)
    return tmp_path / "sqbench"


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # else that is the reason
    monkeypatch.setenv("CC", "/nonexistent/cc -m64")
    assert "no C compiler: CC=/nonexistent/cc is not there" in str(compiler.load())
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert str(compiler.load()) == "no C compiler: install gcc or clang"
    assert not fresh.exists()


def test_switched_off_by_the_environment(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQBENCH_NATIVE", "0")
    assert str(compiler.load()) == "switched off by SQBENCH_NATIVE=0"


def test_a_cpu_without_avx2(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "needs a CPU with AVX2" in str(compiler.load())


@needs_kernels
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int broken(void) { return nonsense; }\n", encoding="utf-8")
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    reason = str(compiler.load())
    assert "the compiler failed" in reason
    assert "nonsense" in reason
    assert list(fresh.iterdir()) == []


@needs_kernels
@pytest.mark.slow
def test_a_cache_that_cannot_be_written(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file where a folder should be: refused to root as well
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path))
    assert not isinstance(compiler.load(), compiler.Unavailable)
    assert len(list(tmp_path.glob("sqbench-*/kernels-*.so"))) == 1


@needs_kernels
@pytest.mark.slow
def test_two_processes_may_compile_at_once_and_later_ones_do_not(fresh: Path) -> None:
    code = "from sqbench.execution import native; assert native.unavailable() is None, native.unavailable()"
    both = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    (library,) = fresh.iterdir()
    written = library.stat().st_mtime_ns
    assert not isinstance(compiler.load(), compiler.Unavailable)
    assert library.stat().st_mtime_ns == written
