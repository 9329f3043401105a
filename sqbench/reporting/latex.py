r"""A table as LaTeX, in two styles. `plain` needs only booktabs. `paper` has blocks, notes below the table and footnotes.

All text from names and messages is escaped.
"""

import re
from typing import Any

import pandas as pd

from sqbench.errors import UserError
from sqbench.formats.scheme import OP_SETS
from sqbench.reporting.cells import VALUE, caption, counts_vary, emboldened, note_text, printable, remarks, texts, title, value_text
from sqbench.reporting.grid import Grid, wide

_ESCAPES = {char: rf"\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$"}
_ESCAPES |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_ESCAPES |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_BOLD = r"\\textbf{\1}"
PACKAGES = {"plain": ("booktabs",), "paper": ("booktabs", "multirow", "makecell", "threeparttable")}


def to_latex(grid: Grid) -> str:
    """A booktabs table with its whole caption. It compiles in any document."""
    cells = emboldened(texts(grid).map(_number), grid, _BOLD)
    style = cells.style
    for axis, names in ((0, grid.rows), (1, grid.columns)):
        style = style.format_index(_typeset, axis=axis)
        style = style.format_index_names(_typeset, axis=axis) if names else style
    return _needs("plain") + style.to_latex(
        hrules=True,
        column_format="l" * len(grid.rows) + "r" * len(cells.columns),
        multirow_align="naive",  # the first of equal labels, then blanks: needs no \multirow package
        position_float="centering",
        caption=_typeset(caption(grid)),
        label=f"tab:{slug(grid.metric.name)}",
    )


def to_paper(grid: Grid, experiment: str = "", heading: str = "", label: str = "") -> str:
    """A table for a paper. Equal labels form blocks. Small type below each value has the change or the seeds.

    Table notes hold the remarks, the error of each failed point, and the meaning of the op sets.

    Args:
        experiment: its name is in the caption and in the label.
        heading: replaces the caption.
        label: replaces the label `tab:EXPERIMENT-METRIC`.

    Raises:
        UserError: LaTeX cannot refer to the label.
    """
    if not re.fullmatch(r"[\w:.-]*", label):
        raise UserError(f"label={label}: must be letters, digits and :._-")
    marks: dict[str, str] = {}
    body = wide(grid, lambda cell: _stacked(cell, grid, marks))
    words = {word for row in body.to_numpy() for word in row}
    sets = "; ".join(_op_sets(grid))
    shared = " on ".join(grid.context[name] for name in ("model", "data") if name in grid.context)
    told = f"{experiment}: " * bool(experiment) + title(grid) + f", {shared}" * bool(shared) + "."
    *notes, _ = remarks(grid, "Below each value")
    notes += ["-- was not run"] * ("--" in words)
    notes += [f"Quantized operations are, with {sets}"] * bool(sets)
    return "\n".join([
        _needs("paper") + r"\begin{table}",
        r"\centering",
        r"\begin{threeparttable}",
        rf"\caption{{{_typeset(heading or told)}}}",
        rf"\label{{{label or 'tab:' + '-'.join(slug(part) for part in (experiment, grid.metric.name) if part)}}}",
        _blocks(body, grid),
        r"\begin{tablenotes}[flushleft]\footnotesize",
        *(rf"\item[{mark}] {_typeset(error)}" for error, mark in marks.items()),
        rf"\item {_number('. '.join(notes))}.",
        r"\end{tablenotes}",
        r"\end{threeparttable}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _stacked(cell: Any, grid: Grid, marks: dict[str, str]) -> str:
    """The value of a cell, the marks of its errors, and its note in small type below."""
    value = _number(value_text(cell, grid.metric))
    value = re.sub(VALUE, _BOLD, value) if cell.best else value
    letters = [marks.setdefault(printable(error), _letter(len(marks))) for error in cell.errors]
    value += rf"\tnote{{{','.join(sorted(set(letters)))}}}" if letters else ""
    note = note_text(cell, grid.metric, with_n=counts_vary(grid))
    return rf"\makecell[tr]{{{value}\\{{\scriptsize {_number(note)}}}}}" if note else value


def _blocks(body: pd.DataFrame, grid: Grid) -> str:
    """The tabular. It has space between the blocks of rows, and rules below labels that several columns share."""
    body = body.rename_axis(index=[None] * len(grid.rows), columns=[None] * body.columns.nlevels)
    style = body.style.format_index(_typeset, axis=0).format_index(_typeset, axis=1)
    sides = len(grid.rows)
    text = style.to_latex(
        hrules=True,
        column_format="l" * sides + "r" * len(body.columns),
        multirow_align="t",
        multicol_align="c",
        clines="skip-last;data",
    )
    lines = text.splitlines()
    first = lines.index(r"\toprule") + 1
    last = lines.index(r"\midrule") - 1
    # Styler puts the names of the rows on a line of their own. Papers have them on the line of the columns.
    lines[last] = " & ".join(_typeset(name) for name in grid.rows) + lines[last].removeprefix(" & " * (sides - 1)).rstrip()
    for level in range(body.columns.nlevels - 1)[::-1]:
        rules = [rf"\cmidrule(lr){{{sides + start + 1}-{sides + end}}}" for start, end in _runs(body.columns, level)]
        lines.insert(first + level + 1, " ".join(rules))
    *rows, last_rule, end, close = [r"\addlinespace" if line.startswith(r"\cline") else line for line in lines]
    return "\n".join([*rows, *[last_rule] * (last_rule != r"\addlinespace"), end, close])


def _runs(columns: pd.Index, level: int) -> list[tuple[int, int]]:
    """The first and end place of each run of equal labels of a level."""
    keys = [key[: level + 1] for key in columns]
    starts = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))


def _op_sets(grid: Grid) -> list[str]:
    """The op sets of the results with their meanings, in order."""
    there = {grid.context.get("ops", "")} | (set(grid.cells["ops"]) if "ops" in grid.cells else set())
    return [f"ops {name}, {meaning}" for name, meaning in OP_SETS.items() if name in there]


def _letter(place: int) -> str:
    """a to z, then aa, ab and so on."""
    return _letter(place // 26 - 1) + chr(97 + place % 26) if place >= 26 else chr(97 + place)


def _needs(style: str) -> str:
    return "% needs " + " ".join(rf"\usepackage{{{name}}}" for name in PACKAGES[style]) + "\n"


def _number(text: str) -> str:
    """Typeset text. A hyphen before a digit becomes a minus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", _typeset(text))


def _typeset(text: object) -> str:
    escaped = "".join(_ESCAPES.get(char, char) for char in printable(text))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped  # else an argument of the line break before it


def slug(name: str) -> str:
    """A metric's name as part of a file name or label."""
    return re.sub(r"[^\w.,-]", "-", name)
