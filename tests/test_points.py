"""`sqbench.points`: what it lists, compares, explains, and what it removes (and what it must not)."""

import json
import os
import time

import pytest
from cli import put_back
from examples import build, write

from sqbench.points import main
from sqbench.running.identity import REVISION
from sqbench.storage.files import digest
from sqbench.storage.locks import claim


@pytest.fixture
def points(capsys):
    """The command line: exit status, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        with put_back():
            status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def ok(method="rtn", **changes):
    return build(method, identity__revision=REVISION, **changes)


def test_the_float_model_is_a_point_too(points, tmp_path):
    write(tmp_path, ok("fp", bits="fp", delta={}), ok("rtn", identity__seed=3))
    status, out, _ = points(f"results_dir={tmp_path}")
    assert status == 0
    assert [line.split()[4] for line in out.splitlines()[2:] if line.strip()][:2] == ["fp", "rtn"]
    assert "seed=3" in out


@pytest.fixture
def folder(tmp_path):
    """Three points of this version: two fine, one failed."""
    write(tmp_path, ok(), ok("smoothquant", alpha=0.5, perplexity=15.3))
    write(tmp_path, ok("awq", bits="w4a16", status="failed", error={"type": "ValueError", "message": "[red]no\x1b[31m range"}))
    return tmp_path


def ids(folder):
    found = {}
    for path in folder.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        found[record["identity"]["method"]["name"]] = record["point_id"]
    return found


def test_every_point_is_a_line(points, folder):
    status, out, _ = points(f"results_dir={folder}")
    assert status == 0
    for method, point_id in ids(folder).items():
        (line,) = (line for line in out.splitlines() if point_id in line)
        assert method in line
    assert "perplexity" in out
    assert "\x1b[31m" not in out


def test_filters_are_those_of_the_tables_and_the_status(points, folder):
    out = points(f"results_dir={folder}", "where.status=failed")[1]
    assert [point_id in out for point_id in (ids(folder)["awq"], ids(folder)["rtn"])] == [True, False]
    out = points("list", f"results_dir={folder}", "where.method=[rtn,smoothquant]")[1]
    assert ids(folder)["awq"] not in out


def test_another_revision_is_marked(points, folder):
    write(folder, build("rtn", "w4a16", identity__revision=REVISION - 1))
    assert f"revision {REVISION - 1}" in points(f"results_dir={folder}")[1].replace("\n", " ")


def test_show_has_the_command_and_the_error(points, folder):
    out = points("show", ids(folder)["awq"][:6], f"results_dir={folder}")[1]
    assert "message: '[red]no" in out or "[red]no" in out
    assert "status: failed" in out


def test_diff_names_what_differs_and_nothing_else(points, folder):
    known = ids(folder)
    status, out, _ = points("diff", known["rtn"], known["smoothquant"], f"results_dir={folder}")
    assert status == 0
    names = [line.split()[0] for line in out.splitlines()[2:] if line.strip("─ ")]
    assert names[:2] == ["method.alpha", "method.name"]
    assert "perplexity" in names
    assert "seed" not in names


@pytest.mark.parametrize(("line", "said"), [
    (["shw"], "did you mean show?"),
    (["diff", "aaa"], "takes 2 point ids"),
    (["show", "zzzz"], "zzzz: "),
    (["show", ""], "3 points begin so"),
    (["clean"], "must be followed by at least one of failed, old"),
    (["clean", "fialed"], "did you mean failed?"),
    (["clean", "failed"], "yes=true removes without asking"),
    (["where.methd=rtn"], "where.methd=rtn: did you mean where.method?"),
    (["yes=maybe"], "yes=maybe: must be true or false"),
    (["results_di=x"], "results_di=x: did you mean results_dir?"),
    (["where.method=rtm"], "did you mean rtn?"),
])  # fmt: skip
def test_bad_input_says_what_works(points, folder, line, said):
    status, _, err = points(*line, f"results_dir={folder}")
    assert (status, "Traceback" in err) == (2, False)
    assert said in err
    assert len(ids(folder)) == 3


def test_a_missing_folder_stays_missing(points, tmp_path):
    for verb in ("list", "clean failed"):
        assert points(*verb.split(), f"results_dir={tmp_path / 'none'}")[0] == 2
    assert not (tmp_path / "none").exists()


def test_clean_removes_what_it_names_and_nothing_else(points, folder):
    failed, fine = ids(folder)["awq"], {ids(folder)[name] for name in ("rtn", "smoothquant")}
    before = {point_id: (folder / "runs" / point_id / "record.json").read_bytes() for point_id in fine}
    status, out, _ = points("clean", "failed", f"results_dir={folder}", "yes=true")
    assert status == 0
    assert f"runs/{failed}" in out
    assert "1 removed" in out
    assert {path.name for path in (folder / "runs").iterdir()} == fine
    assert {point_id: (folder / "runs" / point_id / "record.json").read_bytes() for point_id in fine} == before
    assert "nothing in" in points("clean", "failed", f"results_dir={folder}", "yes=true")[1]


def test_clean_asks(points, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in (("", 3), ("n", 3), ("y", 2)):
        monkeypatch.setattr("builtins.input", lambda *_, answer=answer: answer)
        assert points("clean", "failed", f"results_dir={folder}")[0] == 0
        assert len(ids(folder)) == left


def test_every_kind_of_remains(points, folder):
    runs, fine = folder / "runs", ids(folder)["rtn"]
    write(folder, old := build("rtn", "w4a16", identity__revision=REVISION - 1))
    (runs / "killed").mkdir()
    (runs / "killed" / "checkpoint.safetensors").write_bytes(b"x")
    (runs / fine / "record.json.corrupt").write_text("{")
    (runs / fine / "claim.json").write_text('{"host": "elsewhere", "pid": 1, "since": 0}')
    (runs / fine / ".record.json.x.part").write_text("{")
    for name in ("claim.json", ".record.json.x.part"):
        os.utime(runs / fine / name, (time.time() - 7200,) * 2)
    (runs / "broken").mkdir()
    (runs / "broken" / "record.json").write_text("{")
    out = points("clean", "failed", "old", "unfinished", "damaged", "claims", f"results_dir={folder}", "yes=true")[1]
    assert "training goes on from its checkpoint" in out
    assert "7 removed" in out
    assert {path.name for path in runs.iterdir() if any(path.iterdir())} == {ids(folder)["rtn"], ids(folder)["smoothquant"]}
    assert old["point_id"] not in out.split("removed")[-1]
    assert [path.name for path in (runs / fine).iterdir()] == ["record.json"]


def test_what_a_live_process_computes_is_never_removed(points, folder):
    with claim(folder / "runs" / ids(folder)["awq"] / "claim.json"):
        assert "nothing in" in points("clean", "failed", "claims", "unfinished", f"results_dir={folder}", "yes=true")[1]
    assert len(ids(folder)) == 3


def test_why_a_point_was_invalidated(points, command, results):
    """A real point, then the same after its data changed and after the code's numbers did."""
    assert command("method=rtn").code == 0
    (path,) = results.glob("runs/*/record.json")
    point_id = path.parent.name
    assert "running it again would skip it" in points("why", point_id, f"results_dir={results}")[1]
    record = json.loads(path.read_text())
    record["identity"]["revision"] -= 1
    record["identity"]["data"]["text"] = "f" * 64
    record["point_id"] = digest(record["identity"])[:12]
    record.pop("checksum")
    write(results.parent / "aged", record)
    out = points("why", record["point_id"], f"results_dir={results.parent / 'aged'}")[1]
    assert f"gives {point_id} today, because of" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("revision", "data.text"))}
    assert rows["revision"] == [str(REVISION - 1), str(REVISION)]
    assert rows["data.text"][0] == "f" * 12
    record["config"]["data"]["path"] = "/nowhere.txt"
    write(results.parent / "gone", record)
    assert "no longer works" in points("why", record["point_id"], f"results_dir={results.parent / 'gone'}")[1]
