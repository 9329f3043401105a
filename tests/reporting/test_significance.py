"""Tables whose cells are compared by example, from records and samples made by hand."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import metric
from rich.console import Console

from sqbench.comparison import Outcome
from sqbench.errors import UserError
from sqbench.records.record import Record
from sqbench.reporting import significance
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.latex import to_latex, to_paper
from sqbench.reporting.selection import check_examples
from sqbench.reporting.significance import MOST_CELLS
from sqbench.reporting.tables import to_markdown, to_wide_csv
from sqbench.reporting.terminal import sweep_table

NLL = Outcome("perplexity", "nll", ("window",), weights="tokens")
RIGHT = Outcome("proportion", "correct", ("image",))


class Points:
    """Records with their samples: changes of the loss by window against a float model."""

    def __init__(self, make_record: Any) -> None:
        self.make_record = make_record
        self.records: list[Record] = []
        self.samples: dict[str, pd.DataFrame] = {}
        self.read: list[str] = []
        self.base = np.random.default_rng(0).normal(2.7, 0.2, 16)

    def add(self, method: str, change: float, *, noise: float = 0.01, bits: str = "w8a8", draw: int = 1, **changes: Any) -> str:
        nll = self.base + change + np.random.default_rng(draw).normal(0, noise, len(self.base))
        samples = pd.DataFrame({"window": range(len(nll)), "tokens": 511, "nll": nll, "nll_fp": self.base})
        found = NLL.compare(NLL.rows(samples), nll, self.base, 1000, 0.95)
        given = {"delta": {"perplexity": found.as_dict()}, "outcomes": {"perplexity": NLL.as_dict()}, **changes}
        record = self.make_record(method, bits, perplexity=float(np.exp(nll.mean())), **given)
        self.records.append(record)
        self.samples[record.point_id] = samples
        return str(record.point_id)

    def columns(self, point_id: str, names: Sequence[str]) -> pd.DataFrame | None:
        self.read.append(point_id)
        samples = self.samples.get(point_id)
        return samples[list(names)] if samples is not None and set(names) <= set(samples) else None

    def grid(self, rows: Sequence[str] = ("method",), columns: Sequence[str] = ("bits",), metric: str = "perplexity") -> Grid:
        return significance.tested(lay_out(results_frame(self.records), rows, columns, metric), self.records, self.columns)

    def bold(self, **layout: Any) -> set[tuple[str, str]]:
        cells = self.grid(**layout).cells
        return set(cells[cells["best"]][["method", "bits"]].itertuples(index=False, name=None))


@pytest.fixture
def points(make_record: Any) -> Points:
    return Points(make_record)


def test_what_is_not_significantly_worse_than_the_best_of_its_column_is_bold(points: Points) -> None:
    points.add("rtn", 0.10, draw=1)
    points.add("smoothquant", 0.051, draw=2)
    points.add("mse", 0.05, draw=3)
    points.add("awq", 0.3, bits="w4a16", draw=4)  # alone in its column: there is nothing to be better than
    assert points.bold() == {("smoothquant", "w8a8"), ("mse", "w8a8")}
    text = to_markdown(points.grid())
    assert "Bold is not significantly worse than the best of its column (sign-flip test by window, Holm over 2 comparisons)" in text
    assert "Every change is significant at 5 % (sign-flip test, Holm over 4 changes)" in text
    found = "Over 16 examples, 95 % intervals held the true change in 92 of 100 simulated comparisons"
    assert f"{found} in which a few changed far more than the rest. " in text


def test_without_columns_all_bit_widths_are_rivals(points: Points) -> None:
    points.add("rtn", 0.05)
    points.add("awq", 0.3, bits="w4a16", draw=4)
    assert points.bold(rows=("method", "bits"), columns=()) == {("rtn", "w8a8")}


def test_a_change_that_is_not_significant_says_what_would_have_been(points: Points) -> None:
    points.add("rtn", 0.0, noise=0.02)
    grid = points.grid()
    (cell,) = grid.cells[grid.cells["method"] == "rtn"].itertuples()
    assert cell.unclear
    assert cell.p_holm == cell.p > 0.05
    assert re.search(rf"\], n\.s\., detectable {cell.detectable:.3f}\)", to_markdown(grid))
    assert 0.1 < cell.detectable < 0.4  # 14.9 · 0.02 / 4 windows^(1/2) · 3
    assert "n.s., detectable x: not significant at 5 % (sign-flip test, Holm over 1 change); a change of x" in to_markdown(grid)


def test_holm_is_over_the_table(points: Points) -> None:
    changes = {"rtn": 0.016, "mse": 0.3, "minmax": 0.3, "percentile": 0.3, "entropy": 0.3}
    for draw, (method, change) in enumerate(changes.items()):
        points.add(method, change, noise=0.02, draw=draw)
    alone = points.records[:1]
    p = alone[0].delta["perplexity"]["p"]
    assert 0.01 < p < 0.05
    one = significance.tested(lay_out(results_frame(alone), ["method"], ["bits"], "perplexity"), alone, points.columns)
    assert not one.cells["unclear"].any()
    points.add("histogram", 0.0, noise=0.03, draw=9)
    points.add("awq", 0.0, noise=0.03, draw=11)
    alone[0].delta["perplexity"]["low"] = 0.01
    cells = points.grid().cells.set_index("method")
    assert cells.at["rtn", "unclear"]
    assert cells.at["rtn", "p_holm"] == pytest.approx(3 * p)  # with the two that are less significant
    said = "The interval of rtn w8a8 excludes 0 and the change is n.s.: an interval is of one change alone, and Holm's correction"
    assert said in to_markdown(points.grid())


@pytest.mark.parametrize(
    ("windows", "methods", "tested"),
    [(4, 1, False), (5, 1, False), (6, 1, True), (6, 2, False), (8, 6, True), (8, 7, False)],
    ids=str,
)
def test_too_few_windows_to_test_are_no_proof_of_no_change(points: Points, windows: int, methods: int, tested: bool) -> None:
    """Of k windows the least p-value is 2^(1 - k), and Holm multiplies it."""
    points.base = points.base[:windows]
    for draw in range(methods):
        points.add(f"m{draw}", 0.5, draw=draw)  # all windows are worse, each by far
    grid, text = points.grid(), to_markdown(points.grid())
    assert ("too few windows to test)" in text) != tested
    assert "n.s." not in text
    assert set(grid.cells["untested"][grid.cells["method"] != "fp"]) == ({""} if tested else {"too few windows to test"})
    note = f"too few windows to test: no change over so few could be significant at 5 % (sign-flip test, Holm over {methods} change"
    assert (note in text) != tested
    assert ("Every change is significant" in text) == tested


def test_windows_that_do_not_change_do_not_count(points: Points) -> None:
    points.base = points.base[:12]
    name = points.add("rtn", 0.0, noise=0.0)
    changed = points.base + np.where(np.arange(12) < 5, 0.1, 0.0)
    points.samples[name]["nll"] = changed
    points.records[0].delta["perplexity"] = NLL.compare(NLL.rows(points.samples[name]), changed, points.base, 1000, 0.95).as_dict()
    assert "too few windows differ to test)" in to_markdown(points.grid())


def test_the_float_model_is_no_rival(points: Points) -> None:
    points.add("rtn", 0.05)
    points.add("mse", 0.2, draw=2)
    points.add("fp", 0.0, noise=0.0, bits="fp")
    assert points.bold(rows=("method", "bits"), columns=()) == {("rtn", "w8a8")}


def test_only_points_with_one_float_model_are_rivals(points: Points) -> None:
    points.add("rtn", 0.05)
    points.add("mse", 0.2, draw=2)
    for method, change in (("rtn", 0.5), ("mse", 0.9)):
        points.add(method, change, config__model__name="other", identity__model__weights="f" * 64, draw=5)
    grid = points.grid(rows=("model", "method"))
    found = grid.cells[grid.cells["best"]]
    assert sorted(zip(found["model"], found["method"], strict=True)) == [("other", "rtn"), ("smollm2", "rtn")]
    assert "its column among points with the same float model (sign" in to_markdown(grid)


def test_a_cell_without_samples_is_not_compared_and_the_caption_says_so(points: Points) -> None:
    points.add("rtn", 0.05)
    points.add("mse", 0.2, draw=2)
    del points.samples[points.add("awq", 0.01, draw=3)]
    points.add("entropy", 0.01, draw=4, outcomes={})  # a record of an older version
    moved = points.add("minmax", 0.01, draw=5)
    points.samples[moved]["window"] += 1
    assert points.bold() == {("rtn", "w8a8")}
    assert "3 of 5 cells are not compared with the best: no samples, or of other examples" in to_markdown(points.grid())


def test_seeds_are_averaged_by_example_before_the_test(points: Points) -> None:
    for seed in (0, 1):
        points.add("rtn", 0.05, draw=seed, identity__seed=seed)
        points.add("mse", 0.2, draw=10 + seed, identity__seed=seed)
        points.add("awq", 0.0, draw=20 + seed, identity__seed=seed, noise=0.03)
    cells = points.grid().cells.set_index("method")
    both = [points.samples[record.point_id]["nll"] for record in points.records if record.identity["method"]["name"] == "rtn"]
    rows = NLL.rows(points.samples[points.records[0].point_id])
    expected = NLL.compare(rows, np.mean(both, axis=0), points.base, 10_000, 0.95)
    assert (cells.at["rtn", "p"], cells.at["rtn", "detectable"]) == pytest.approx((expected.p, expected.detectable))
    assert cells.at["rtn", "seed_std"] > 0  # and stays the spread of the seeds
    assert list(cells["best"][["awq", "rtn", "mse"]]) == [True, False, False]
    assert re.search(r"± 0\.\d\d \(2 seeds, [+-]0\.\d{3} \[\S+, \S+\], n\.s\., detectable", to_markdown(points.grid()))


def test_mean_interval_and_spread_of_seeds_stand_together_in_every_style(points: Points) -> None:
    for seed in (0, 1, 2):
        points.add("rtn", 0.05, draw=seed, identity__seed=seed)
    grid = points.grid()
    (cell,) = grid.cells[grid.cells["method"] == "rtn"].itertuples()
    losses = np.mean([points.samples[record.point_id]["nll"] for record in points.records], axis=0)
    expected = NLL.compare(NLL.rows(points.samples[points.records[0].point_id]), losses, points.base, 10_000, 0.95)
    assert cell.high - cell.low == pytest.approx(expected.high - expected.low)
    assert cell.low < cell.delta < cell.high
    value, change = f"{cell.value:.2f} ± {cell.seed_std:.2f}", f"{cell.delta:+.3f} [{cell.low:.3f}, {cell.high:.3f}]"
    assert f"{value} (3 seeds, {change})" in to_markdown(grid)
    assert "Beside ± the interval is of the mean over seeds" in to_markdown(grid)
    for style in (to_latex, to_paper):
        assert value.replace("±", r"$\pm$") in style(grid)
        assert change in style(grid)
    head, row = (line.split(",") for line in to_wide_csv(grid).splitlines()[:3:2])
    wide = dict(zip(head, row, strict=True))
    assert float(wide["w8a8 seed_std"]) == pytest.approx(cell.seed_std)
    assert [float(wide[f"w8a8 {name}"]) for name in ("change", "low", "high")] == pytest.approx([cell.delta, cell.low, cell.high])
    out = io.StringIO()
    Console(file=out, width=120).print(sweep_table(points.records, samples=points.columns))
    (mean,) = [line for line in out.getvalue().splitlines() if "±" in line and "over" not in line]
    assert value in mean
    assert change in mean
    assert mean.split()[-2:] == ["3", "seeds"]


def test_answers_are_compared_by_the_exact_test_and_more_is_better(points: Points) -> None:
    floats = np.arange(1000) < 900
    for method, lost in (("rtn", 40), ("mse", 3), ("awq", 0)):
        correct = floats & (np.arange(1000) >= lost)
        samples = pd.DataFrame({"image": range(1000), "correct": correct, "correct_fp": floats})
        delta = RIGHT.compare(RIGHT.rows(samples), correct, floats, 1000, 0.95).as_dict()
        made = {"metrics": {"top1": correct.mean()}, "delta": {"top1": delta}, "outcomes": {"top1": RIGHT.as_dict()}}
        record = points.make_record(method, baseline={"top1": 0.9}, **made)
        points.records.append(record)
        points.samples[record.point_id] = samples
    assert points.bold(metric="top1") == {("mse", "w8a8"), ("awq", "w8a8")}  # three flips prove nothing
    text = to_markdown(points.grid(metric="top1"))
    assert "| **90.00** (+0.000 [-0.277, 0.277], n.s., detectable 0.395) |" in text
    assert "| 86.00 (-4.00 [" in text
    assert "exact McNemar test by image, Holm over 2 comparisons" in text
    assert "simulated" not in text


def test_samples_are_read_of_shown_cells_alone_and_of_not_too_many(points: Points) -> None:
    points.add("rtn", 0.05)
    points.add("mse", 0.2, draw=2)
    hidden = points.add("awq", 0.2, bits="w4a16", draw=3)
    frame = results_frame(points.records)
    significance.tested(
        lay_out(frame[frame["bits"] != "w4a16"], ["method"], ["bits"], "perplexity"), points.records, points.columns
    )
    assert points.read
    assert hidden not in points.read
    points.read.clear()
    for number in range(MOST_CELLS):
        points.add(f"m{number}", 0.1)
    text = to_markdown(points.grid())
    assert points.read == []
    assert f"{MOST_CELLS + 3} cells are too many to compare with each other; at most {MOST_CELLS} are compared" in text
    assert "**" not in text


def test_bold_is_escaped_in_every_format(points: Points) -> None:
    points.add(r"a_b|*{", 0.05)
    points.add("mse", 0.2, draw=2)
    latex, markdown = to_latex(points.grid()), to_markdown(points.grid())
    assert re.search(r"a\\_b\\textbar\{\}\*\\\{ & -- & \\textbf\{\d\d\.\d\d\} \(\+0\.\d{3} \[", latex)
    assert re.search(r"\| a_b\\\|\\\*\{ +\| -- +\| \*\*\d\d\.\d\d\*\* \(\+", markdown)
    assert latex.count("textbf") == markdown.count("**") / 2 == 1
    lines = to_wide_csv(points.grid()).splitlines()
    assert lines[0] == "method,fp,fp p,fp p_holm,fp detectable,fp best,w8a8,w8a8 p,w8a8 p_holm,w8a8 detectable,w8a8 best"
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["--", "false", "true"]


def test_a_record_without_tests_makes_the_table_that_it_made(points: Points, make_record: Any) -> None:
    points.records = [make_record("rtn"), make_record("mse", perplexity=16.0)]
    frame = results_frame(points.records)
    plain = lay_out(frame, ["method"], ["bits"], "perplexity")
    for write in (to_markdown, to_latex, to_wide_csv):
        assert write(points.grid()) == write(plain)


@pytest.mark.parametrize(("change", "message"), [
    ({"identity__data__windows": 64}, r"windows=16,64: results that are over other examples make no table together; "
     r"use where.windows=16, or rows=\[method,windows\]"),
    ({"identity__data__window": 128}, "window=128,512: .*use where.window=128"),
    ({"config__data__name": "wiki", "identity__data__text": "e" * 64}, "data=pydoc,wiki: .*use where.data=pydoc"),
    ({"identity__scheme__ops": "full"}, "ops=full,linear: results that quantize other operations make no table together"),
])  # fmt: skip
def test_other_examples_or_operations_are_refused_unless_they_are_rows_or_columns(make_record, change, message) -> None:
    frame = results_frame([make_record("rtn"), make_record("awq", **change)])
    with pytest.raises(UserError, match=message):
        check_examples(frame, ["method"], ["bits"], metric("perplexity"))
    name = message.partition("=")[0]
    check_examples(frame, ["method", name], ["bits"], metric("perplexity"))
    check_examples(frame, ["method"], ["bits", name], metric("perplexity"))
    same = results_frame([make_record("rtn"), make_record("awq", identity__backend="int")])
    check_examples(same, ["method"], ["bits"], metric("perplexity"))


def test_accuracy_of_a_task_called_glossary_is_no_loss_and_a_metric_that_nobody_knows_has_no_best(points: Points) -> None:
    for name, best in (("glossary/acc", {("awq", "w8a8")}), ("glossary/score", set())):
        points.records.clear()
        points.add("rtn", 0.0, draw=1)
        points.add("awq", 0.5, draw=2)  # larger
        points.records = [
            replace(
                record,
                metrics={name: record.metrics["perplexity"]},
                delta={name: record.delta["perplexity"]},
                declared={name: replace(metric(name), outcome=NLL)},
            )
            for record in points.records
        ]
        grid = points.grid(metric=name)
        cells = grid.cells[grid.cells["best"]]
        assert set(cells[["method", "bits"]].itertuples(index=False, name=None)) == best
        assert any("is not known" in note for note in grid.notes) == (not best)
