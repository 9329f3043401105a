# ruff: noqa: E501 (the golden is as wide as it is)
r"""LaTeX: the paper style's golden, its footnotes and blocks, hostile names, and both styles compiled by a real LaTeX."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.latex import PACKAGES, to_latex, to_paper

HOSTILE = r"[a_b] & 5% #{~^\<|>}$ \input{x}"
# After a wanted change, the new text is in: pytest tests/reporting/test_latex.py -k golden -vv
PAPER = r"""% needs \usepackage{booktabs} \usepackage{multirow} \usepackage{makecell} \usepackage{threeparttable}
\begin{table}
\centering
\begin{threeparttable}
\caption{lab\_alpha: perplexity by method, alpha (down) and bits (across), smollm2 on pydoc.}
\label{tab:lab_alpha-perplexity}
\begin{tabular}{llrrr}
\toprule
method & alpha & fp & w8a8 & w4a16 \\
\midrule
fp &  & 14.86 & -- & -- \\
\addlinespace
rtn &  & -- & -- & \makecell[tr]{1.2e5\\{\scriptsize +1.2e5 [1.2e5, 1.2e5]}} \\
\addlinespace
\multirow[t]{2}{*}{smoothquant} & 0.5 & -- & \makecell[tr]{15.15 $\pm$ 0.07\\{\scriptsize 2 seeds, +0.290}} & fail\tnote{a} \\
 & auto & -- & \makecell[tr]{14.80\\{\scriptsize $-$0.060 [$-$0.160, 0.040]}} & -- \\
\addlinespace
\multirow[t]{2}{*}{awq} & 0.5 & -- & -- & \makecell[tr]{15.30\\{\scriptsize +0.440 [0.340, 0.540]}} \\
 & auto & -- & -- & fail\tnote{a} \\
\bottomrule
\end{tabular}
\begin{tablenotes}[flushleft]\footnotesize
\item[a] ValueError: no range
\item All with model smollm2, data pydoc, eval perplexity, window 512, windows 16, samples 32, source data, ops linear, backend sim, device cpu. Below each value the change against the float model [and its 95 \% interval]. $\pm$ is the standard deviation over seeds. n = 16 examples. -- was not run. Quantized operations are, with ops linear, linear and convolution layers.
\end{tablenotes}
\end{threeparttable}
\end{table}
"""


@pytest.fixture
def grid(make_record):
    frame = results_frame([
        make_record("rtn", "w4a16", perplexity=123456.0),
        make_record("smoothquant", "w8a8", 0.5, 15.1),
        make_record("smoothquant", "w8a8", 0.5, 15.2, identity__seed=1),
        make_record("smoothquant", "w8a8", "auto", 14.8),
        make_record("smoothquant", "w4a16", 0.5, status="failed"),
        make_record("awq", "w4a16", 0.5, 15.3),
        make_record("awq", "w4a16", "auto", status="failed"),
    ])  # fmt: skip
    return lay_out(frame, ["method", "alpha"], ["bits"], "perplexity")


def compiled(bodies, packages, folder):
    """What LaTeX says of a document with these tables."""
    needed = "".join(f"\\usepackage{{{name}}}\n" for name in packages)
    document = f"\\documentclass{{article}}\n{needed}\\begin{{document}}\n{{}}\n" + "\n".join(bodies) + "\\end{document}\n"
    (folder / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_golden(grid):
    assert to_paper(grid, "lab_alpha") == PAPER


def test_equal_labels_are_one_block(grid):
    text = to_paper(grid)
    assert r"\multirow[t]{2}{*}{smoothquant}" in text
    assert r"\multirow[t]{2}{*}{awq}" in text
    assert text.count(r"\addlinespace") == 3  # between four methods


def test_columns_that_share_a_label_are_one_block(make_record):
    records = [make_record("rtn", bits, backend=backend) for bits in ("w8a8", "w4a16") for backend in ("sim", "int")]
    for record, backend in zip(records, ("sim", "int") * 2, strict=True):
        record.identity["backend"] = backend
    text = to_paper(lay_out(results_frame(records), ["method"], ["bits", "backend"], "perplexity"))
    assert r"\multicolumn{2}{c}{w8a8} & \multicolumn{2}{c}{w4a16}" in text
    assert re.search(r"\\cmidrule\(lr\)\{3-4\} \\cmidrule\(lr\)\{5-6\}\nmethod & ", text)


def test_each_error_is_one_footnote(make_record):
    failed = {"status": "failed", "error": {"type": "OutOfMemoryError", "message": "50% of 8 GB"}}
    records = [make_record("rtn", "w8a8"), make_record("awq", "w8a8", 0.5, **failed), make_record("awq", "w4a16", 0.5, **failed)]
    text = to_paper(lay_out(results_frame(records), ["method"], ["bits"], "perplexity"))
    assert text.count(r"fail\tnote{a}") == 2
    assert text.count(r"\item[a] OutOfMemoryError: 50\% of 8 GB") == 1


def test_op_sets_are_explained(make_record):
    records = [make_record("rtn", "w8a8"), make_record("minmax", "w8a8", identity__scheme__ops="full")]
    text = to_paper(lay_out(results_frame(records), ["method", "ops"], ["bits"], "perplexity"))
    assert re.search(r"operations are, with ops linear, linear and convolution layers; ops full, .* residual stream", text)


def test_the_significant_best_is_bold(grid):
    bold = grid.cells.assign(best=(grid.cells["method"] == "awq") & (grid.cells["points"] > 0))
    text = to_paper(replace(grid, cells=bold))
    assert r"\textbf{15.30}" in text
    assert text.count(r"\textbf") == 1


@pytest.mark.parametrize(("given", "caption", "label"), [
    ({}, r"perplexity by", "tab:perplexity"),
    ({"experiment": "lab_alpha"}, r"lab\_alpha: perplexity by", "tab:lab_alpha-perplexity"),
    ({"heading": "5 % off", "label": "tab:mine"}, r"5 \% off", "tab:mine"),
])  # fmt: skip
def test_caption_and_label(grid, given, caption, label):
    text = to_paper(grid, **given)
    assert rf"\caption{{{caption}" in text
    assert rf"\label{{{label}}}" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(("writer", "style"), [(to_latex, "plain"), (to_paper, "paper")])
def test_a_real_latex_takes_it(grid, make_record, tmp_path, writer, style):
    failed = make_record(HOSTILE, "w4a16", status="failed", error={"type": "Error", "message": HOSTILE})
    hostile = lay_out(results_frame([make_record(HOSTILE), failed]), ["method", "weights"], ["bits", "device"], "perplexity")
    bold = replace(grid, cells=grid.cells.assign(best=True))
    assert "undefined" not in compiled([writer(bold), writer(hostile)], PACKAGES[style], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_paper_table_fits_the_page(grid, tmp_path):
    assert "Overfull" not in compiled([to_paper(grid)], PACKAGES["paper"], tmp_path)
