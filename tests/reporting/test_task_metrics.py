"""Metrics of lm-eval's tasks in tables: in order, in the unit of their kind, with their own number of examples."""

from dataclasses import replace

from examples import made, metric

from sqbench.comparison import main_metric
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.tables import to_markdown
from sqbench.reporting.units import number


def record(method: str = "rtn", accuracy: float = 0.8, **changes):
    delta = {"value": accuracy - 0.9, "low": -0.15, "high": -0.05, "level": 0.95, "n": 1000}
    metrics = {
        "acc": accuracy,
        "acc_stderr": 0.01,
        "a/acc": accuracy,
        "a/acc_stderr": 0.01,
        "a/f1,strict": 0.5,
        "weight_bytes": 1e8,
    }
    return made(
        method,
        "w4a16",
        metrics=metrics,
        baseline={"acc": 0.9, "a/acc": 0.9, "a/f1,strict": 0.6, "weight_bytes": 4e8},
        delta={"acc": {**delta, "n": 2000}, "a/acc": delta},
        identity__eval={"name": "lm_eval", "tasks": {"a": {"file": "c" * 64}}},
        **changes,
    )


def test_a_task_of_schema_1_has_the_facts_of_its_kind():
    assert [metric(name).unit for name in ("acc", "a/acc", "a/b/acc,strict", "acc/other")] == ["%", "%", "%", ""]
    assert number(0.8015, metric("a/acc")) == number(0.8015, metric("acc")) == "80.15"


def test_the_mean_over_tasks_comes_before_its_tasks():
    names = ["weight_bytes", "b/acc", "a/acc", "acc", "word/word_perplexity", "unknown", "a/f1", "kl_to_fp"]
    ordered = [one.name for one in sorted(map(metric, names), key=lambda one: one.rank)]
    assert ordered == ["word/word_perplexity", "acc", "a/acc", "b/acc", "kl_to_fp", "weight_bytes", "unknown", "a/f1"]
    assert main_metric(map(metric, ["weight_bytes", "a/perplexity", "a/acc", "acc"])).name == "acc"
    assert main_metric(map(metric, ["weight_bytes", "text/word_perplexity"])).name == "text/word_perplexity"


def test_examples_are_counted_by_task_and_never_by_windows():
    frame = results_frame([record()])
    counts = {(row.method, row.metric): row.n for row in frame.dropna(subset="n").itertuples()}
    expected = {("rtn", "acc"): 2000, ("rtn", "a/acc"): 1000, ("rtn", "delta_acc"): 2000, ("rtn", "delta_a/acc"): 1000}
    assert counts == expected | {("fp", "acc"): 2000, ("fp", "a/acc"): 1000}
    assert frame.set_index(["method", "metric"]).at[("rtn", "a/acc"), "stderr"] == 0.01


def test_other_files_are_another_row_even_under_one_name():
    changed = {"name": "lm_eval", "tasks": {"a": {"file": "d" * 64}}}
    other = record(accuracy=0.7)
    other = replace(other, point_id="other", identity={**other.identity, "eval": changed})
    table = to_markdown(lay_out(results_frame([record(), other]), ["method"], [], "a/acc"))
    assert "a/acc (%)" in table
    assert "eval.tasks.a.file=cccccccccccc" in table
    assert "eval.tasks.a.file=dddddddddddd" in table
