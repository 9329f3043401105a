"""`python -m sqbench.report` as a person starts it."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import Ended, contents, environment, wait_for
from examples import build, write

from sqbench.reporting.html.page import render
from sqbench.reporting.html.progress import progress
from sqbench.reporting.html.results import read


def line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sqbench.report", *arguments]


def reported(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    strict = environment(PYTHONWARNINGS="error")
    return subprocess.run(line(*arguments), cwd=cwd, env=strict, capture_output=True, text=True, timeout=300)


def test_one_file_and_its_path(results: Path, tmp_path: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5), build("awq", "w4a16", status="failed"))
    before, cwd = contents(results), tmp_path / "cwd"
    cwd.mkdir()
    done = reported(f"results_dir={results}", cwd=cwd)
    page = results / "report" / "index.html"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{page}\n", "")
    assert [path for path in contents(results) if path not in before] == ["report/index.html"]
    assert {path: state for path, state in contents(results).items() if path in before} == before
    assert list(cwd.iterdir()) == []
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_empty_folder_has_a_page(results: Path, tmp_path: Path) -> None:
    results.mkdir()
    done = reported(f"results_dir={results}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No point yet" in (results / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_real_sweep_tells_how_far_it_is(command: Callable[..., Ended], results: Path) -> None:
    assert command("method=rtn").code == 0
    assert command("-m", "method=rtn,smoothquant,awq", "alpha=0.5").code == 0
    found = read(results)
    swept = progress(results, found.records)
    assert swept is not None
    assert (swept.total, swept.skipped, swept.done, swept.failed, swept.left, swept.running) == (3, 1, 2, 0, 0, ())
    page = re.sub(r"\s+", " ", render(results, now=0.0, live=2.0))
    assert "<strong>Complete</strong>: 3 of 3 points of the sweep " in page
    assert all(f'id="p-{point}"' in page for point in found.records)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("results_dir=nowhere", "error: results_dir=nowhere: no such folder (from "),
        ("every=0", "error: every=0.0: must be a number of seconds from 0.1"),
        ("port=70000", "error: port=70000: must be a number from 0 to 65535"),
    ],
)
def test_what_cannot_work_ends_with_status_2(given: str, said: str, tmp_path: Path) -> None:
    done = reported(given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_live_view_says_where_it_is_and_follows_the_records(results: Path, tmp_path: Path) -> None:
    write(results, build("rtn"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        watching = subprocess.Popen(
            line(f"results_dir={results}", "watch=true", "every=0.1", f"port={port}"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline() == f"port {port} is in use: {port + 1} is the next free one\n"
            found = re.match(r"(http://127\.0\.0\.1:\d+/)", watching.stdout.readline())
            assert found

            def fetched(name: str) -> str:
                with urllib.request.urlopen(found[1] + name, timeout=10) as answer:
                    return str(answer.read().decode())

            first = fetched("built.txt")
            assert f'name="built" content="{first.strip()}"' in fetched("")
            write(results, added := build(alpha=0.5))
            assert wait_for(lambda: fetched("built.txt") != first)
            assert added["point_id"] in fetched("")
        finally:
            watching.send_signal(signal.SIGINT)
            _, said = watching.communicate(timeout=60)
    assert (watching.returncode, said) == (130, "")
