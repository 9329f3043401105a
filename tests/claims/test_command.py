"""`python -m sqbench.claims` as a person starts it, with a claim of their own over the tiny model."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from cli import environment, tiny_run


def claims(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sqbench.claims", *arguments]
    return subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def file(tiny_folder: Path, text_file: Path, tmp_path: Path) -> Path:
    text = text_file.rename(tmp_path / "a text.txt")  # a name that wants quotes wherever it is written
    own = ("results_dir=", "tracker=", "data.windows=", "data.path=")
    kept = [item for item in tiny_run(tiny_folder, text, tmp_path) if not item.startswith(own)]
    common = shlex.join([*kept, "data.windows=16", f"data.path='{text}'"])
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
key: mine
statement: Eight bits cost little, three a lot.
source: common sense
common: {json.dumps(common)}
points: {{eight: method=rtn bits=w8a16, three: method=rtn bits=w3a16 bits.weights.group_size=32}}
evidence:
  - {{says: 8 bits cost less than 1 %, measure: change, of: eight, metric: perplexity, is: "< 1 %"}}
  - {{says: 3 bits cost more than 8, measure: change, of: three, against: eight, metric: perplexity, is: "> 0 %"}}
  - {{says: nobody took a gradient step, measure: number, of: three, path: quantized.gradient_steps, is: "< 1"}}
"""
    )
    return path


@pytest.mark.slow
def test_points_run_once_and_the_verdict_is_written(file, tmp_path):
    arguments = (f"files=[{file}]", f"results_dir={tmp_path / 'results'}")
    nothing = claims(*arguments, "run=false", cwd=tmp_path)
    assert nothing.returncode == 0
    assert "inconclusive" in nothing.stdout
    planned = claims(*arguments, "plan=true", cwd=tmp_path)
    assert planned.stdout.count("to do") == 2

    done = claims(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "supported" in done.stdout
    table = pd.read_csv(tmp_path / "results" / "claims.csv")
    assert table["holds"].tolist() == ["supported"] * 3
    assert (table["verdict"] == "supported").all()
    for name in table["points"].str.split().explode():
        assert (tmp_path / "results" / "runs" / name / "record.json").is_file()
    text = (tmp_path / "results" / "claims.md").read_text()
    assert "**supported**" in text
    assert "common sense" in text

    before = (tmp_path / "results" / "claims.md").read_bytes(), (tmp_path / "results" / "claims.csv").read_bytes()
    again = claims(*arguments, cwd=tmp_path)
    assert again.stderr.count("skipped") == 2
    assert before == ((tmp_path / "results" / "claims.md").read_bytes(), (tmp_path / "results" / "claims.csv").read_bytes())
    (tmp_path / "a text.txt").unlink()  # verdicts come from records alone
    assert claims(*arguments, "run=false", cwd=tmp_path).returncode == 0
    assert before == ((tmp_path / "results" / "claims.md").read_bytes(), (tmp_path / "results" / "claims.csv").read_bytes())


@pytest.mark.slow
def test_a_failed_point_is_said_and_decides_nothing(file, tmp_path):
    file.write_text(file.read_text().replace("group_size=32", "group_size=32 data.bos=true"))
    done = claims(f"files=[{file}]", f"results_dir={tmp_path / 'results'}", cwd=tmp_path)
    assert done.returncode == 1
    text = (tmp_path / "results" / "claims.md").read_text()
    assert "**inconclusive**" in text
    assert "not measured: point" in text


@pytest.mark.slow
def test_bad_input(file, tmp_path):
    for arguments, said in ((["only=[z]"], "known: a, b"), (["files=[no.yaml]"], "no.yaml"), (["onyl=[a]"], "onyl")):
        done = claims(*arguments, cwd=tmp_path)
        assert done.returncode != 0
        assert said in done.stderr + done.stdout
    file.write_text(file.read_text().replace("bits=w8a16", "bits=w8a16 alpha=7"))
    done = claims(f"files=[{file}]", cwd=tmp_path)
    assert done.returncode == 2
    assert "alpha=7" in done.stderr
    assert not (tmp_path / "results").exists()
