"""The built wheel is whole: configuration included, usable from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sqbench.config import CONF_DIR


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(CONF_DIR.parent)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    shipped = {str(path.relative_to(installed / "sqbench")) for path in (installed / "sqbench" / "conf").rglob("*.yaml")}
    assert shipped == {str(path.relative_to(CONF_DIR.parent)) for path in CONF_DIR.rglob("*.yaml")}
    assert (installed / "sqbench" / "evaluation" / "smoke.jsonl").is_file()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for module, words in (("sqbench.run", ["smollm2_135m", "alpha_sweep", "awq"]), ("sqbench.collect", ["metric"])):
        command = [
            sys.executable,
            "-c",
            f"import runpy, sys; sys.argv = ['{module}', '--help']; runpy.run_module('{module}', run_name='__main__')",
        ]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words), done.stdout
    (elsewhere / "results").mkdir()
    page = "import runpy, sys; sys.argv = ['sqbench.report']; runpy.run_module('sqbench.report', run_name='__main__')"
    made = subprocess.run([sys.executable, "-c", page], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout) == (0, "results/report/index.html\n"), made.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import sqbench; print(sqbench.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
