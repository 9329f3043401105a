"""The console script: its commands are those of `python -m`, and it refuses anything else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT, environment, tiny_run
from test_commands import COMMANDS as MODULES

import sqbench
from sqbench.commands import COMMANDS

SCRIPT = ("-c", "import sys; from sqbench.commands import main; sys.exit(main())")  # what an installer writes


def python(*words: str, cwd: Path) -> tuple[int, str, str]:
    line = [sys.executable, *words]
    ended = subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", ["method=awk"]),
        ("collect", []),
        *(  # two more processes each
            pytest.param(name, words, marks=pytest.mark.slow)
            for name, words in (("run", ["--help"]), ("run", ["-m", "bits=w4a17,w8a8"]), ("points", ["lst"]))
        ),
    ],
)
def test_a_command_of_the_script_is_the_module(name: str, words: list[str], tmp_path: Path) -> None:
    code, out, err = python("-m", f"sqbench.{name}", *words, cwd=tmp_path)
    assert python(*SCRIPT, name, *words, cwd=tmp_path) == (code, out, err)
    assert code == (0 if "--help" in words else 2)
    assert out + err


def test_the_script_knows_every_command(tmp_path: Path) -> None:
    assert sorted(COMMANDS) == sorted(module.removesuffix(".__main__") for module in MODULES)
    code, out, err = python(*SCRIPT, "--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert re.findall(r"^  (\w+) ", out, re.MULTILINE) == list(COMMANDS)
    assert 'sqbench = "sqbench.commands:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"), [([], "sqbench: needs a command; known: "), (["colect"], "did you mean collect? known: ")]
)
def test_an_unknown_or_missing_command_is_refused_with_a_list(words: list[str], said: str, tmp_path: Path) -> None:
    code, out, err = python(*SCRIPT, *words, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert all(name in err for name in COMMANDS)


def test_the_script_tells_its_version_at_once(tmp_path: Path) -> None:
    code = "import sys; from sqbench.commands import main; sys.exit(main() or 'hydra' in sys.modules)"
    assert python("-c", code, "--version", cwd=tmp_path) == (0, f"sqbench {sqbench.__version__}\n", "")


@pytest.mark.slow  # processes that import torch
def test_the_script_runs_a_sweep_with_points_in_processes_of_their_own(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    words = tiny_run(tiny_folder, text_file, tmp_path / "results", "-m", "method=rtn,fp", "bits=w4a16", "isolate=true")
    code, out, err = python(*SCRIPT, "run", *words, cwd=tmp_path)
    assert code == 0, err
    assert "2 done" in out
