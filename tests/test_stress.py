"""The stress script in small: what it counts is right, and nothing is lost or done twice."""

import json
import subprocess
import sys

import pytest
from cli import ROOT, environment

from sqbench.records.store import Store

POINTS = 16


@pytest.mark.slow
def test_points_survive_random_kills_and_are_computed_once(tmp_path):
    line = [sys.executable, "-m", "scripts.stress", f"points={POINTS}", "processes=2", "kill_every=2", f"folder={tmp_path}/stress"]
    ended = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended
    found = json.loads(ended.stdout)
    assert found["points"] == found["records"] == POINTS
    assert 0 < found["computed"] <= POINTS  # one killed between its record and its last line has said nothing
    assert found["kills"] >= 1
    assert set(found["wrong"].values()) == {0}
    records = list(Store(tmp_path / "stress" / "results").records())
    assert sorted(record.identity["method"]["alpha"] for record in records) == [index / POINTS for index in range(POINTS)]
