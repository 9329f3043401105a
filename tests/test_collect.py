import os
import subprocess
import sys
from pathlib import Path

import pytest
from examples import build, write
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sqbench.collect import CollectConfig, chosen, collect, every, records_of
from sqbench.config import CONF_DIR
from sqbench.errors import UserError
from sqbench.records.fields import FILTERS, GROUPABLE
from sqbench.reporting.frame import results_frame
from sqbench.reporting.order import labels


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write(folder, build("rtn", perplexity=16.0), build(alpha=0.5), build(alpha=1.0, perplexity=15.3))
    write(folder, build("awq", "w4a16", status="failed"))
    return folder


def command(*arguments, cwd):
    """The command line as a person runs it, in a folder of its own."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error"}
    line = [sys.executable, "-m", "sqbench.collect", *arguments]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def test_tables_are_written_and_shown(results, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("cwd")
    done = command(f"results_dir={results}", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    folder = results / "tables"
    files = [folder / name for name in ("long.csv", "perplexity.csv", "perplexity.tex", "perplexity.md")]
    assert done.stdout == (folder / "perplexity.md").read_text() + "\n" + "".join(f"{file}\n" for file in files)
    assert (folder / "perplexity.csv").read_text() == (
        "method,alpha,fp,w8a8,w4a16\nfp,,14.86,--,--\nrtn,,--,16,--\nsmoothquant,0.5,--,15.1,--\nsmoothquant,1,--,15.3,--\nawq,,--,--,fail\n"
    )
    assert sorted(folder.iterdir()) == sorted(files)
    assert list(cwd.iterdir()) == []  # no folder of Hydra's, no log
    assert sorted(path.name for path in results.iterdir()) == ["runs", "tables"]


def test_a_wrong_name_ends_with_status_2_and_no_traceback(results, tmp_path_factory):
    done = command(f"results_dir={results}", "metric=perplexty", cwd=tmp_path_factory.mktemp("cwd"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: metric=perplexty: did you mean perplexity? known: agreement, delta_perplexity, kl_to_fp, perplexity, weight_bytes\n"
    )
    assert not (results / "tables").exists()


def test_intervals_of_different_versions_are_told(results):
    made_again = "python -m sqbench.points intervals makes all of them again"
    assert made_again not in collect(CollectConfig(results_dir=str(results)))[0]
    for number, test in enumerate(("bootstrap-t", "t of the log ratio")):
        record = build("mse", identity__seed=number)
        record["delta"]["perplexity"]["test"] = test
        write(results, record)
    assert made_again in collect(CollectConfig(results_dir=str(results)))[0]


def test_a_paper_gets_caption_and_label_from_the_experiment(tmp_path, tmp_path_factory):
    results, cwd = tmp_path, tmp_path_factory.mktemp("cwd")
    line = {"provenance__command": "python -m sqbench.run experiment=lab_alpha 'data.path=a b'"}
    write(results, build("rtn", **line), build(alpha=0.5, **line), build("awq", "w4a16", status="failed", **line))
    assert command(f"results_dir={results}", "style=paper", cwd=cwd).returncode == 0
    text = (results / "tables" / "perplexity.tex").read_text()
    assert r"\label{tab:lab_alpha-perplexity}" in text
    assert r"\caption{lab\_alpha: perplexity by method, alpha (down)" in text
    assert r"\item[a] ValueError: no range" in text
    assert command(f"results_dir={results}", "style=paper", "label=tab:mine", "caption='5 % off, \"so\"'", cwd=cwd).returncode == 0
    text = (results / "tables" / "perplexity.tex").read_text()
    assert '\\caption{5 \\% off, "so"}\n\\label{tab:mine}' in text


@pytest.mark.parametrize(("given", "said"), [
    (["style=papr"], "papr"),
    (["caption=mine"], "style=paper"),
    (["style=paper", "label='a b'"], "label=a b: must be letters"),
])  # fmt: skip
def test_what_no_table_can_be_made_with(results, tmp_path_factory, given, said):
    done = command(f"results_dir={results}", *given, cwd=tmp_path_factory.mktemp("cwd"))
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("field", FILTERS)
def test_results_are_chosen_by_every_field(results, field):
    frame = results_frame(records_of(str(results), "collect"))
    value = max(labels(frame[field]))  # empty where no point has it
    assert value in labels(chosen(frame, every() | {field: value})[field])


def test_an_unknown_filter_is_refused_by_name(results):
    with pytest.raises(UserError, match=r"where\.methd: did you mean method\? known: activations, alpha"):
        collect(CollectConfig(results_dir=str(results), where={"methd": "rtn"}))


def test_a_folder_of_results_folders_is_listed_with_the_lines_to_type(results):
    with pytest.raises(UserError) as refused:
        collect(CollectConfig(results_dir=str(results.parent)))
    assert str(refused.value) == (
        f"results_dir={results.parent}: is no results folder, and holds 1:\npython -m sqbench.collect results_dir={results}"
    )


def test_help_names_every_row_and_column(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("rows, columns"))
    assert sorted(line.split()[2:]) == sorted(set(GROUPABLE))


def test_a_missing_folder_is_named_with_what_fills_it(tmp_path):
    line = r'`python -m sqbench.run \'results_dir="\S+no where"\'` makes'
    message = rf"results_dir=\S+no where: no such folder \(from .*\); {line}"
    with pytest.raises(UserError, match=message):
        collect(CollectConfig(results_dir=str(tmp_path / "no where")))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_records_is_told_from_a_missing_one(tmp_path):
    with pytest.raises(UserError, match=r"no readable record in its runs/; `python -m sqbench.run results_dir="):
        collect(CollectConfig(results_dir=str(tmp_path)))


def test_damaged_records_are_passed_over_and_named(results, caplog):
    path = next((results / "runs").glob("*/record.json"))
    path.write_text(path.read_text().replace("perplexity", "perplexitx"))
    table, _ = collect(CollectConfig(results_dir=str(results)))
    assert len(table.split("\n\n")[0].splitlines()) == 6  # head, rule, the baseline and three of four points
    assert str(path) in caplog.text


def test_filters_choose_and_keep_the_baseline(results):
    table, files = collect(CollectConfig(results_dir=str(results), where={"method": "smoothquant", "alpha": [1.0]}))
    rows = [line.strip("| ").replace(" ", "").split("|")[:2] for line in table.split("\n\n")[0].splitlines()[2:]]
    assert rows == [["fp", ""], ["smoothquant", "1"]]
    assert "awq" in files[0].read_text()  # long.csv has everything


def test_filters_that_leave_nothing_say_so(results):
    with pytest.raises(UserError, match=r"where.method=\[rtn\], where.bits=\[w4a16\]: no point matches all of them"):
        collect(CollectConfig(results_dir=str(results), where={"method": ["rtn"], "bits": "w4a16"}))


def test_without_a_metric_the_main_one_is_shown(tmp_path):
    write(tmp_path, build("rtn", metrics={"agreement": 0.5, "top1": 0.8}, baseline={}, delta={}))
    assert "top1 (%) by method" in collect(CollectConfig(results_dir=str(tmp_path)))[0]


def test_the_yaml_and_the_schema_agree():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = compose("collect")
    assert OmegaConf.to_object(composed) == CollectConfig()
