import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from cli import tiny_run
from examples import SCHEMES, made, write

from sqbench.records.store import Store
from sqbench.tracking import wandb as tracker
from sqbench.tracking.content import name_of, pictures_of


@pytest.fixture(autouse=True)
def session(monkeypatch):
    """A process that has not tried a server yet, of a person without an account, whose wandb is stopped afterwards."""
    monkeypatch.setattr(tracker._unreachable, "_flag", False)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens on the discard port: refused at once
    monkeypatch.setattr(tracker, "PATIENCE", 1.0)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def mirror(record, results_dir, mode="offline", samples=None):
    tracker.mirror(record, samples, mode=mode, project="demo", entity=None, results_dir=results_dir, sweep="alphas")


def run_folders(results_dir, point_id):
    return list((results_dir / "wandb").glob(f"*run-*-{point_id}"))


def said(caplog):
    """Our own messages; the library's go to its log file, but pytest sees them."""
    return [entry.getMessage() for entry in caplog.records if entry.name == tracker.__name__]


def inspect(folder, *options):
    """What the library's own reader finds in a run folder."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary_of(results_dir, point_id):
    (folder,) = run_folders(results_dir, point_id)
    return json.loads(inspect(folder, "--summary"))


def test_an_offline_run_holds_the_record(tmp_path):
    record = made("smoothquant", "w8a8", 0.5)
    mirror(record, tmp_path, samples=pd.DataFrame({"window": [0, 1], "nll": [2.5, None], "text": ["a", None]}))
    found = summary_of(tmp_path, record.point_id)
    assert (found["run_id"], found["project"], found["state"]) == (record.point_id, "demo", "finished")
    assert found["name"] == "smollm2 smoothquant w8a8 a=0.5"
    assert found["tags"] == ["smoothquant", "w8a8", "smollm2", "pydoc", "perplexity", "sim", "ok"]
    assert found["config"] == {**record.config, "identity": record.identity}
    summary = found["summary"]
    assert {name: summary[name] for name in record.metrics} == record.metrics
    assert (summary["delta/perplexity/low"], summary["delta/perplexity/n"]) == (pytest.approx(0.14), 16)
    assert (summary["cost/seconds/total"], summary["status"]) == (12.34, "ok")
    (folder,) = run_folders(tmp_path, record.point_id)
    tables = {path.name.rsplit("_", 2)[0]: json.loads(path.read_text()) for path in folder.rglob("media/table/*.json")}
    assert tables["per_layer"]["columns"] == ["layer", "input_sqnr_db"]
    assert tables["per_layer"]["data"] == [["q_proj", 30.5]]
    assert tables["samples"]["data"] == [[0, 2.5, "a"], [1, None, None]]
    assert json.loads((folder / "files" / "record.json").read_text()) == record.to_json()


def test_the_run_has_its_group_job_type_and_artifact_and_needs_nothing_outside(tmp_path):
    record = made("smoothquant", "w8a8", "auto")
    mirror(record, tmp_path)
    (folder,) = run_folders(tmp_path, record.point_id)
    entries = [json.loads(line) for line in inspect(folder).splitlines()]
    text = json.dumps(entries)
    assert '"alphas"' in text
    assert '"job_type": "smoothquant"' in text
    artifacts = {entry["artifact"]["name"]: entry["artifact"] for entry in entries if entry["type"] == "artifact"}
    assert set(artifacts) == {f"record-{record.point_id}", f"run-{record.point_id}-per_layer"}
    for artifact in artifacts.values():
        for content in artifact["manifest"]["contents"]:
            assert Path(content["local_path"]).is_relative_to(folder)
            assert Path(content["local_path"]).is_file()


def test_a_failed_point_is_a_failed_run(tmp_path):
    record = made("rtn", status="failed")
    mirror(record, tmp_path)
    found = summary_of(tmp_path, record.point_id)
    assert (found["state"], found["name"], found["summary"]["status"]) == ("failed", "smollm2 rtn w8a8", "failed")
    assert "per_layer" not in found["summary"]


def test_points_of_one_process_are_runs_of_their_own(tmp_path):
    records = [made(alpha=alpha) for alpha in (0.3, 0.5)]
    for record in records:
        mirror(record, tmp_path)
    names = [summary_of(tmp_path, record.point_id)["name"] for record in records]
    assert names == ["smollm2 smoothquant w8a8 a=0.3", "smollm2 smoothquant w8a8 a=0.5"]


def test_a_point_done_again_replaces_its_run_and_no_other(tmp_path):
    first, other = made(alpha=0.5), made(alpha=0.8)
    again = dataclasses.replace(first, metrics={"perplexity": 99.0})
    for record in (first, other, again):
        mirror(record, tmp_path)
    assert summary_of(tmp_path, first.point_id)["summary"]["perplexity"] == 99.0
    assert len(run_folders(tmp_path, other.point_id)) == 1


def test_disabled_does_nothing_and_imports_nothing(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from sqbench.tracking.wandb import mirror\n"
        "mirror({}, None, mode='disabled', project='p', entity=None, results_dir=pathlib.Path(sys.argv[1]), sweep='s')\n"
        "assert 'wandb' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_unreachable_server_costs_one_warning_and_no_point(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    records = [made(alpha=alpha) for alpha in (0.3, 0.5)]
    for record in records:
        mirror(record, tmp_path, "online")
    (warning,) = said(caplog)
    assert warning.startswith("W&B server unreachable: ")
    assert "127.0.0.1:9" in warning
    assert warning.endswith("; logging offline, `wandb sync` uploads later")
    for record in records:
        assert summary_of(tmp_path, record.point_id)["state"] == "finished"
        (folder,) = run_folders(tmp_path, record.point_id)  # nothing is left of the attempt
        assert folder.name.startswith("offline-run-")
    assert capfd.readouterr() == ("", "")


def test_without_a_key_nobody_is_asked_for_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: pytest.fail("it would have asked"))
    record = made(alpha=0.5)
    mirror(record, tmp_path, "online")
    assert "no API key" in caplog.text
    assert summary_of(tmp_path, record.point_id)["state"] == "finished"


def test_an_upload_that_never_ends_is_waited_for_once(tmp_path, monkeypatch, caplog):
    import wandb

    modes = []

    class Stuck:
        def __init__(self, mode, **options):
            modes.append(mode)
            self.settings = SimpleNamespace(sync_dir=str(tmp_path))

        def finish(self, exit_code):
            if modes[-1] == "online":
                raise TimeoutError("Timed out finishing run.")

    monkeypatch.setattr(wandb, "init", Stuck)
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(tracker, "_fill", lambda *arguments: None)
    for alpha in (0.3, 0.5):
        mirror(made(alpha=alpha), tmp_path, "online")
    assert modes == ["online", "offline"]
    assert [message.partition(":")[0] for message in said(caplog)] == ["W&B server unreachable"]


def test_whatever_the_library_raises_stays_inside(tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(tracker, "_fill", broken)
    record = made(alpha=0.5)
    mirror(record, tmp_path)
    assert said(caplog) == [f"W&B run of point {record.point_id} is incomplete: OSError: disk full"]


def test_the_callers_own_run_and_environment_stay(tmp_path, monkeypatch):
    import wandb

    with wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off")) as own:
        mirror(made(alpha=0.5), tmp_path)
        assert wandb.run is own
        own.log({"still": 1})
    assert "WANDB_DATA_DIR" not in os.environ
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    record = made(alpha=0.8)
    mirror(record, tmp_path)
    assert list((tmp_path / "mine" / "artifacts" / "staging").iterdir())
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")


def test_long_names_become_valid_tags():
    assert tracker._tags(["a", "x" * 80, "", "a"]) == ["a", "x" * 64]


@pytest.mark.slow
def test_the_learning_curve_is_logged_epoch_by_epoch(tmp_path):
    record = made("qat", "w8a8")
    curve = [{"epoch": 0, "loss": None, "validation_top1": 0.5}, {"epoch": 1, "loss": 0.7, "validation_top1": 0.75}]
    record.quantized["training"] = {"gradient_steps": 9, "curve": curve}
    mirror(record, tmp_path)
    (folder,) = run_folders(tmp_path, record.point_id)
    entries = [json.loads(line) for line in inspect(folder).splitlines()]
    assert "training/validation_top1" in json.dumps(entries)
    summary = summary_of(tmp_path, record.point_id)["summary"]
    assert summary["training/loss"] == 0.7


def test_tables_of_groups_and_widths_and_the_spread_over_layers(tmp_path):
    quantized = {
        "per_layer": [{"layer": "q", "input_sqnr_db": 30.0}, {"layer": "k", "input_sqnr_db": None}],
        "groups": [{"source": "norm", "readers": ["q", "k"], "alpha": 0.6}],
        "allocation": {"budget": 4.5, "groups": [{"group": "q", "bits": 3}]},
    }
    record = made("smoothquant", "w8a8", "auto", quantized=quantized)
    mirror(record, tmp_path)
    (folder,) = run_folders(tmp_path, record.point_id)
    tables = {path.name.rsplit("_", 2)[0]: json.loads(path.read_text())["data"] for path in folder.rglob("media/table/*.json")}
    assert tables == {"per_layer": [["q", 30.0], ["k", None]], "groups": [["norm", "q, k", 0.6]], "allocation": [["q", 3]]}
    spread = summary_of(tmp_path, record.point_id)["summary"]["layers/input_sqnr_db"]
    assert (spread["_type"], sum(spread["values"])) == ("histogram", 1)


def test_pictures_are_those_of_the_points_own_weights_and_method(tmp_path):
    from PIL import Image

    record, other = made(alpha=0.5), made(alpha=0.8)
    plots = tmp_path / "plots"
    plots.mkdir()
    for layer, owner in (("a", record), ("b", other)):
        Image.new("RGB", (8, 8)).save(plots / f"distributions-smollm2-{layer}.png")
        of = {"weights": owner.identity["model"]["weights"], "method": owner.identity["method"]}
        (plots / f"distributions-smollm2-{layer}.json").write_text(json.dumps({**of, "layer": layer, "told": "what it shows"}))
    (plots / "distributions-smollm2-c.json").write_text("{")
    mirror(record, tmp_path)
    summary = summary_of(tmp_path, record.point_id)["summary"]
    shown = summary["distributions"]
    assert (shown["_type"], shown["count"], shown["captions"]) == ("images/separated", 1, ["what it shows"])
    (folder,) = run_folders(tmp_path, record.point_id)
    assert [path.stat().st_size for path in folder.rglob("media/images/*.png")] == [
        (plots / "distributions-smollm2-a.png").stat().st_size
    ]


def test_names_tell_points_of_a_sweep_apart():
    def scheme(**changes):
        return {**SCHEMES["w8a8"], **changes}

    points = {
        "smollm2 rtn w8a8": made("rtn"),
        "smollm2 rtn w8a8 seed 1": made("rtn", identity__seed=1),
        "smollm2 rtn w8a8 int": made("rtn", identity__backend="int"),
        "smollm2 rtn w8a8 latency": made("rtn", identity__eval__name="latency"),
        "smollm2 rtn w8a8 full": made("rtn", identity__scheme=scheme(ops="full")),
        "smollm2 rtn w8a8 blocks.0": made("rtn", identity__scheme=scheme(layers=("blocks.0",))),
        "smollm2 rtn w8a8 2 layers": made("rtn", identity__scheme=scheme(layers=("a", "b"))),
        "smollm2 awq w8a8 a=auto": made("awq", alpha="auto"),
    }
    assert [name_of(record) for record in points.values()] == list(points)


@pytest.mark.slow
def test_a_picture_that_plot_draws_is_found_by_the_point_it_belongs_to(command, results, tiny_folder, text_file):
    from sqbench import plot

    method = ("method=smoothquant", "alpha=0.6", "bits=w8a8")
    assert command(*method).code == 0
    drawn = [*tiny_run(tiny_folder, text_file, results, *method), "layer=model.layers.0.mlp.up_proj", "formats=[png]"]
    assert plot.main(["distributions", *drawn]) == 0
    (record,) = Store(results).records()
    (picture,) = pictures_of(record, results)
    assert picture.path.is_file()
    assert "model.layers.0.mlp.up_proj" in picture.caption
    assert "alpha 0.6" in picture.caption


@pytest.mark.slow
def test_a_results_folder_is_mirrored_as_a_whole(tmp_path, capsys):
    from scripts import wandb_mirror

    records = [made(alpha=0.5), made("rtn", status="failed")]
    write(tmp_path, *records)
    assert wandb_mirror.main(["--results-dir", str(tmp_path), "--project", "again"]) == 0
    assert capsys.readouterr().out == "2 points\n"
    assert [summary_of(tmp_path, record.point_id)["state"] for record in records] == ["finished", "failed"]
    with pytest.raises(SystemExit) as end:
        wandb_mirror.main(["--results-dir", str(tmp_path / "none")])
    assert end.value.code == 2
