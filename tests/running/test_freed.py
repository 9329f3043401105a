"""A finished point leaves nothing in memory but what points share."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli import environment, tiny_run

# In a process of its own, because what is imported during its first point matters.
PROGRAM = """
import gc, sys, weakref
from sqbench import api
from sqbench.running import runner, stages
from sqbench.running.resolved import resolve

made, seen = stages.quantized, []

def watched(*arguments):
    model = made(*arguments)
    seen.append(weakref.ref(model.module))
    return model

stages.quantized = watched
resolved = resolve(api.configure(*sys.argv[1:]))
gc.disable()
assert runner.run_point(resolved, []).state == "done"
assert [found() is None for found in seen] == [True]
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothquant", "awq", "gptq"])
def test_a_quantized_model_is_freed_without_a_collector(tiny_folder: Path, text_file: Path, results: Path, method: str) -> None:
    line = [sys.executable, "-c", PROGRAM, *tiny_run(tiny_folder, text_file, results, f"method={method}")]
    done = subprocess.run(line, env=environment(), cwd=results.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
