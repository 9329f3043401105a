# ruff: noqa: E501 (the goldens are as wide as they are)
import io
import math
import re

import pandas as pd
import pytest
from examples import metric

from sqbench.errors import UserError
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.latex import to_latex
from sqbench.reporting.tables import to_long_csv, to_markdown, to_wide_csv, write_tables
from sqbench.reporting.units import change_text, number

# The goldens are of `frame` below. After a wanted change, the new texts are in: pytest tests/reporting/test_tables.py -k golden -vv
MARKDOWN = r"""| method      | alpha | fp    | w8a8                           | w4a16                         |
| ----------- | ----- | ----: | -----------------------------: | ----------------------------: |
| fp          |       | 14.86 | --                             | --                            |
| rtn         |       | --    | --                             | 1.2e5 (+1.2e5 [1.2e5, 1.2e5]) |
| smoothquant | 0.5   | --    | 15.15 ± 0.07 (2 seeds, +0.290) | fail                          |
| smoothquant | auto  | --    | 14.80 (-0.060 [-0.160, 0.040]) | --                            |

perplexity by method, alpha (down) and bits (across). All with model smol_lm\|2, data pydoc, eval perplexity, window 512, windows 16, samples 32, source data, ops linear, backend sim, device cpu. In brackets the change against the float model [and its 95 % interval]. ± is the standard deviation over seeds. n = 16 examples. -- was not run, fail did not finish.
"""
LATEX = r"""% needs \usepackage{booktabs}
\begin{table}
\centering
\caption{perplexity by method, alpha (down) and bits (across). All with model smol\_lm\textbar{}2, data pydoc, eval perplexity, window 512, windows 16, samples 32, source data, ops linear, backend sim, device cpu. In brackets the change against the float model [and its 95 \% interval]. $\pm$ is the standard deviation over seeds. n = 16 examples. -- was not run, fail did not finish.}
\label{tab:perplexity}
\begin{tabular}{llrrr}
\toprule
 & bits & fp & w8a8 & w4a16 \\
method & alpha &  &  &  \\
\midrule
fp &  & 14.86 & -- & -- \\
rtn &  & -- & -- & 1.2e5 (+1.2e5 [1.2e5, 1.2e5]) \\
smoothquant & 0.5 & -- & 15.15 $\pm$ 0.07 (2 seeds, +0.290) & fail \\
 & auto & -- & 14.80 ($-$0.060 [$-$0.160, 0.040]) & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
WIDE = """method,alpha,fp,fp seed_std,fp points,fp failed,fp change,fp low,fp high,w8a8,w8a8 seed_std,w8a8 points,w8a8 failed,w8a8 change,w8a8 low,w8a8 high,w4a16,w4a16 seed_std,w4a16 points,w4a16 failed,w4a16 change,w4a16 low,w4a16 high
fp,,14.86,--,1,0,--,--,--,--,--,--,--,--,--,--,--,--,--,--,--,--,--
rtn,,--,--,--,--,--,--,--,--,--,--,--,--,--,--,123456,--,1,0,123441.14,123441.04,123441.24
smoothquant,0.5,--,--,--,--,--,--,--,15.15,0.07071067812,2,0,0.29,--,--,fail,--,0,1,--,--,--
smoothquant,auto,--,--,--,--,--,--,--,14.8,--,1,0,-0.06,-0.16,0.04,--,--,--,--,--,--,--
"""
LONG = """point_id,status,model,head,data,eval,method,alpha,bits,weights,activations,ops,seed,layers,backend,device,window,windows,images,beams,samples,source,variant,rounding,ranges,propagate,checkpoint,tool,sentences,metric,value,stderr,low,high,level,n,p,p_holm,detectable,gained,lost,flip_rate,test,error
,ok,smollm2,,pydoc,perplexity,fp,,fp,float32,float32,,,,,cpu,512,16,,,,,,,,,,,,perplexity,14.86,,,,,16,,,,,,,,
aaaaaaaaaaaa,ok,smollm2,,pydoc,perplexity,rtn,,w8a8,int8 sym channel,int8 sym token dynamic,linear,0,,sim,cpu,512,16,,,32,data,,,,,,,,perplexity,15.1,,,,,16,,,,,,,,
aaaaaaaaaaaa,ok,smollm2,,pydoc,perplexity,rtn,,w8a8,int8 sym channel,int8 sym token dynamic,linear,0,,sim,cpu,512,16,,,32,data,,,,,,,,delta_perplexity,0.24,,0.14,0.34,0.95,16,0.001,0.001,0.12,3,9,0.75,exact McNemar test,
bbbbbbbbbbbb,failed,smollm2,,pydoc,perplexity,rtn,,w4a16,int4 asym group 64,float32,linear,0,,sim,cpu,512,16,,,32,data,,,,,,,,,,,,,,,,,,,,,,"ValueError: no, ""range"" here"
"""


def by_method(*records, metric="perplexity"):
    return lay_out(results_frame(records), ["method"], ["bits"], metric)


@pytest.fixture
def frame(make_record):
    name = {"config__model__name": "smol_lm|2"}
    return results_frame([
        make_record("rtn", "w4a16", perplexity=123456.0, **name),
        make_record("smoothquant", "w8a8", 0.5, 15.1, **name),
        make_record("smoothquant", "w8a8", 0.5, 15.2, identity__seed=1, **name),
        make_record("smoothquant", "w8a8", "auto", 14.8, **name),
        make_record("smoothquant", "w4a16", 0.5, status="failed", **name),
    ])  # fmt: skip


@pytest.fixture
def grid(frame):
    return lay_out(frame, ["method", "alpha"], ["bits"], "perplexity")


@pytest.mark.parametrize(("writer", "golden"), [(to_markdown, MARKDOWN), (to_latex, LATEX), (to_wide_csv, WIDE)])
def test_golden_of_the_grid(grid, writer, golden):
    assert writer(grid) == golden


def test_golden_of_the_long_frame(make_record):
    error = {"type": "ValueError", "message": 'no, "range" here'}
    failed = make_record("rtn", "w4a16", point_id="bbbbbbbbbbbb", status="failed", error=error)
    record = make_record("rtn", point_id="aaaaaaaaaaaa")
    record.delta["perplexity"] |= {
        "p": 0.001,
        "detectable": 0.12,
        "gained": 3,
        "lost": 9,
        "flip_rate": 0.75,
        "test": "exact McNemar test",
    }
    frame = results_frame([record, failed])
    assert to_long_csv(frame[frame["metric"].isin(["", "perplexity", "delta_perplexity"])]) == LONG


def test_a_table_without_repeats_has_plain_columns(make_record):
    grid = by_method(make_record("rtn"), make_record("awq", "w4a16", perplexity=1 / 3))
    assert to_wide_csv(grid) == "method,fp,w8a8,w4a16\nfp,14.86,--,--\nrtn,--,15.1,--\nawq,--,--,0.3333333333\n"


def test_the_order_of_records_changes_no_byte(frame, grid):
    again = lay_out(frame.iloc[::-1], grid.rows, grid.columns, "perplexity")
    assert all(writer(again) == writer(grid) for writer in (to_latex, to_markdown, to_wide_csv))


@pytest.mark.parametrize(("change", "column"), [
    ({"identity__method__alpha": 0.5}, "alpha"),
    ({"identity__scheme__ops": "linear+attention"}, "ops"),
    ({"identity__data__text": "d" * 64, "config__data__name": "wiki"}, "data"),
    ({"identity__data__window": 128}, "window"),
    ({"identity__data__windows": 64}, "windows"),
    ({"identity__backend": "int"}, "backend"),
    ({"identity__scheme__weights__granularity": "tensor"}, "weights"),
    ({"identity__method__percentile": 99.9}, "variant"),
    ({"identity__revision": 2}, "variant"),
])  # fmt: skip
def test_what_cannot_be_compared_gets_a_row_of_its_own(make_record, change, column):
    grid = by_method(make_record("rtn", perplexity=15.0), make_record("rtn", perplexity=25.0, **change))
    assert grid.rows == ("method", column)
    assert grid.added == (column,)
    assert set(grid.cells["points"]) == {1}
    assert sorted(grid.cells[grid.cells["method"] == "rtn"]["value"]) == [15.0, 25.0]
    assert f"Split by {column}" in to_markdown(grid)


def test_a_cell_says_what_is_missing_from_it(make_record):
    seeds = [make_record("rtn", identity__seed=seed) for seed in (0, 1)]
    lost = make_record("rtn", identity__seed=2, status="failed")
    assert "15.10 ± 0.00 (2 seeds, 1 failed, +0.240)" in to_markdown(by_method(*seeds, lost))
    unpaired = make_record("rtn", identity__seed=2, delta={})  # a mean change of two of three points would be no one's
    assert "15.10 ± 0.00 (3 seeds) |" in to_markdown(by_method(*seeds, unpaired))
    assert "15.10 (+0.100) |" in to_markdown(by_method(make_record("rtn", delta={"perplexity": {"value": 0.1}})))


def test_a_value_that_is_no_number_is_not_missing(make_record):
    grid = by_method(make_record("rtn", metrics={"perplexity": None}, delta={}))
    assert to_wide_csv(grid).splitlines()[2] == "rtn,--,nan"


def test_the_spread_of_infinite_values_is_unknown_and_no_warning(make_record):
    grid = by_method(*(make_record("rtn", perplexity=math.inf, identity__seed=seed, delta={}) for seed in (0, 1)))
    assert "inf ± nan (2 seeds)" in to_markdown(grid)


def test_a_failure_of_another_evaluation_is_not_in_the_table(make_record):
    other = make_record("awq", identity__eval__name="lm_eval", status="failed")
    failed = make_record("mse", status="failed")
    grid = by_method(make_record("rtn"), failed, other)
    assert list(grid.cells["method"]) == ["fp", "rtn", "mse"]


def test_without_results_the_table_says_so(make_record):
    assert to_wide_csv(by_method(make_record("rtn", status="failed"))) == "method,w8a8\nrtn,fail\n"
    with pytest.raises(UserError, match="no result to show"):
        by_method()


def test_n_stands_in_the_cells_where_it_differs(make_record):
    records = [make_record("rtn"), make_record("rtn", identity__data__windows=64, metrics={"perplexity": 15.0}, delta={})]
    text = to_markdown(lay_out(results_frame(records), ["method", "windows"], ["bits"], "perplexity"))
    assert "15.10 (+0.240 [0.140, 0.340], n=16)" in text
    assert "15.00 (n=64)" in text
    assert "n = " not in text


def test_no_columns_make_one_column_of_the_metric(make_record):
    grid = lay_out(results_frame([make_record("rtn")]), ["method", "bits"], [], "weight_bytes")
    assert to_wide_csv(grid) == "method,bits,weight_bytes\nfp,fp,400000000\nrtn,w8a8,100000000\n"
    text = to_markdown(grid)
    assert "| 400.0 " in text
    assert "weight_bytes (MB) by method, bits." in text


def test_several_columns_are_joined_in_flat_formats(make_record):
    grid = lay_out(results_frame([make_record(alpha=0.5)]), ["method"], ["bits", "alpha"], "perplexity")
    assert to_wide_csv(grid).splitlines()[0] == "method,fp / -,w8a8 / 0.5"
    assert "| w8a8 / 0.5 " in to_markdown(grid)
    assert r"\begin{tabular}{lrr}" in to_latex(grid)


@pytest.mark.parametrize(("rows", "columns", "metric", "message"), [
    (["methd"], ["bits"], "perplexity", r"rows=\[methd\]: unknown name methd; did you mean method\? known: activations, alpha,"),
    (["method"], ["value"], "perplexity", r"columns=\[value\]: unknown name value; did you mean eval\? known: "),
    (["method", "bits"], ["bits"], "perplexity", r"rows=\[method,bits\]: bits must stand only once"),
    ([], ["bits"], "perplexity", r"rows=\[\]: must have at least one name; known: activations"),
    (["method"], ["bits"], "ppl", r"metric=ppl: known: agreement, delta_perplexity, kl_to_fp, perplexity, weight_bytes"),
])  # fmt: skip
def test_wrong_names_are_answered_with_the_known_ones(frame, rows, columns, metric, message):
    with pytest.raises(UserError, match=message):
        lay_out(frame, rows, columns, metric)


@pytest.mark.parametrize(("name", "value", "text"), [
    ("perplexity", 15.104, "15.10"), ("perplexity", 99999.0, "99999.00"), ("perplexity", 100000.0, "1.0e5"),
    ("perplexity", 1.26e12, "1.3e12"), ("perplexity", float("nan"), "nan"), ("perplexity", float("inf"), "inf"),
    ("perplexity", -0.001, "0.00"), ("kl_to_fp", 0.01234, "0.0123"), ("agreement", 0.9304, "0.930"),
    ("weight_bytes", 1.0449e8, "104.5"), ("acc,none", 0.25, "25.00"),
])  # fmt: skip
def test_numbers(name, value, text):
    assert number(value, metric(name)) == text


@pytest.mark.parametrize(("change", "text"), [
    ((0.24, 0.14, 0.34), "+0.240 [0.140, 0.340]"), ((-0.06, -0.16, -0.0001), "-0.060 [-0.160, 0.000]"),
    ((12.3, -4.0, 28.123), "+12.30 [-4.00, 28.12]"), ((-0.0001, float("nan"), float("nan")), "+0.000"),
])  # fmt: skip
def test_changes(change, text):
    assert change_text(*change, metric("perplexity")) == text


def test_every_name_is_escaped(make_record):
    nasty = r"a_b & 5% #1 {x} ~^\ <y>|z *`$" + "\n\x1b[31m"
    record = make_record(nasty, perplexity=15.0)
    grid = by_method(record)
    latex = r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}y\textgreater{}\textbar{}z *`\$  [31m"
    assert f"{latex} & -- & 15.00" in to_latex(grid)
    markdown = to_markdown(grid)
    assert r"a_b & 5% #1 {x} ~^\\ \<y>\|z \*\`$  [31m" in markdown
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()[:4]} == {4}
    read = pd.read_csv(io.StringIO(to_long_csv(results_frame([record]))))
    assert nasty in set(read["method"])


def test_a_label_is_no_argument_of_the_line_break_before_it(make_record):
    text = to_latex(by_method(make_record("[1]"), make_record("*")))
    assert re.findall(r"(?m)^\{\}(\S+) &", text) == ["*", "[1]"]


def test_headers_are_escaped_too(make_record):
    frame = results_frame([make_record("rtn", metrics={"my_acc": 0.5}, delta={}, baseline={}, identity__scheme__name="w_8")])
    text = to_latex(lay_out(frame, ["point_id"], ["bits"], "my_acc"))
    assert r"w\_8" in text
    assert r"point\_id" in text
    assert r"\caption{my\_acc by" in text


def test_files_are_written_whole_and_the_same_twice(frame, grid, tmp_path):
    files = write_tables(frame, grid, tmp_path / "tables")
    assert [file.name for file in files] == ["long.csv", "perplexity.csv", "perplexity.tex", "perplexity.md"]
    before = [file.read_bytes() for file in files]
    assert all(content.endswith(b"\n") and b"\r" not in content for content in before)
    assert [file.read_bytes() for file in write_tables(frame, grid, tmp_path / "tables")] == before
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)


def test_a_metric_with_slashes_stays_in_the_folder(make_record, tmp_path):
    frame = results_frame([make_record("rtn", metrics={"../arc/acc,none": 0.5}, delta={}, baseline={})])
    files = write_tables(frame, lay_out(frame, ["method"], ["bits"], "../arc/acc,none"), tmp_path)
    assert {file.parent for file in files} == {tmp_path}
