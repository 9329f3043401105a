"""What tables and pages say of rounding noise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from examples import metric

from sqbench.records.record import Record
from sqbench.reporting import significance
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.html.made import made
from sqbench.reporting.html.results import Results
from sqbench.reporting.latex import to_latex, to_paper
from sqbench.reporting.noise import noise_notes, told_most
from sqbench.reporting.tables import to_markdown

Make = Callable[..., Record]
SAID = (
    "Rounding noise: a change of 1e-6 in what the model reads moves perplexity by 0.024 at w8a8, by 0.0001 at w4a16, by 1.2e-06 in"
    " float (standard deviation over 5 runs)"
)


def spread(std: float) -> dict[str, Any]:
    return {"perplexity": {"std": std, "min": 15.1 - std, "max": 15.1 + std}}


def noisy(make_record: Make, method: str, bits: str, std: float) -> Record:
    noise = {"runs": 5, "relative": 1e-6, "metrics": spread(std), "baseline": spread(1.2e-6), "delta": spread(std)}
    return make_record(method, bits, identity__noise=5, noise=noise)


def test_a_table_says_the_most_of_each_width(make_record: Make) -> None:
    records = [noisy(make_record, *point) for point in (("rtn", "w8a8", 0.01), ("mse", "w8a8", 0.024), ("rtn", "w4a16", 0.0001))]
    grid = significance.tested(
        lay_out(results_frame(records), ["method"], ["bits"], "perplexity"), records, lambda point, names: None
    )
    assert SAID in grid.notes
    assert SAID in to_markdown(grid)
    for latex in (to_latex(grid), to_paper(grid)):
        assert "in what the model reads moves perplexity by 0.024 at w8a8, by 0.0001 at w4a16" in latex


def test_a_table_without_noise_says_nothing_of_it(make_record: Make) -> None:
    records = [make_record("rtn"), make_record("mse")]
    grid = significance.tested(
        lay_out(results_frame(records), ["method"], ["bits"], "perplexity"), records, lambda point, names: None
    )
    assert "noise" not in to_markdown(grid)
    assert noise_notes([noisy(make_record, "rtn", "w8a8", 0.1)], metric("kl_to_fp")) == []


def test_shares_are_told_in_percent(make_record: Make) -> None:
    spreads = {"top1": {"std": 0.0012, "min": 0.8, "max": 0.81}}
    noise = {"runs": 3, "relative": 1e-6, "metrics": spreads, "baseline": spreads, "delta": spreads}
    (said,) = noise_notes([make_record("rtn", noise=noise)], metric("top1"))
    assert "moves top1 by 0.12 % at w8a8, by 0.12 % in float (standard deviation over 3 runs)" in said


def test_a_point_with_and_without_noise_is_one_row(make_record: Make) -> None:
    plain, told, other = make_record("rtn"), noisy(make_record, "rtn", "w8a8", 0.01), make_record("mse")
    assert told_most([plain, told, other]) == [told, other]
    assert told_most([told, plain]) == [told]
    failed = noisy(make_record, "rtn", "w8a8", 0.01)
    failed = replace(failed, status="failed")
    assert told_most([failed, plain]) == [plain]


def test_the_page_of_a_point_says_from_where_to_where(make_record: Make, tmp_path: Any) -> None:
    records = {record.point_id: record for record in (noisy(make_record, "rtn", "w8a8", 0.024), make_record("mse"))}
    frame = results_frame(records.values())
    points, _ = made(Results(tmp_path, records, (), frame, ()))
    facts = {point.title.split()[0]: dict(point.facts) for point in points}
    assert facts["rtn"]["rounding noise, 5 runs"] == "perplexity 0.024 (15.0760 to 15.1240; of its change 0.024)"
    assert not any("noise" in name for name in facts["mse"])
