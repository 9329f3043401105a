"""The tables of a metric: the long frame laid out in cells, and the same cells as CSV, LaTeX and Markdown, byte for byte stable."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sqbench.reporting.frame import FIELDS, GROUPABLE, check_names, family, in_order, labels, rank
from sqbench.storage import write_text

_DECIMALS = {
    "perplexity": 2,
    "top1": 2,
    "top5": 2,
    "acc": 2,
    "acc_norm": 2,
    "word_perplexity": 2,
    "exact_match": 1,
    "prefix": 1,
    "agreement": 3,
    "loglik": 3,
    "repetition": 1,
    "sqnr_db": 1,
    "weight_bytes": 1,
    "resident_bytes": 1,
    "latency_ms": 2,
    "tokens_per_s": 1,
    "decode_tokens_per_s": 1,
    "images_per_s": 1,
}  # else 4
# The change of these is how many times as fast as float: the metric itself grows with it, or falls.
SPEEDS = {"tokens_per_s": 1, "decode_tokens_per_s": 1, "images_per_s": 1, "latency_ms": -1}
UNITS = {
    "weight_bytes": (1e6, "MB"),
    "resident_bytes": (1e6, "MB"),
    "top1": (0.01, "%"),
    "top5": (0.01, "%"),
    "acc": (0.01, "%"),
    "acc_norm": (0.01, "%"),
    "exact_match": (0.01, "%"),
    "repetition": (0.01, "%"),
}  # shown as: divided by, and called
_LATEX = {char: rf"\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TESTED = ("low", "high", "level", "p", "detectable")  # of a change against the float model
_FIRST_WORD = r"^(\S+)"  # of a cell: its value, which is bold or not
_LONG_FLOAT = "%.10g"  # below the noise of a float64 sum, above anything a table shows


@dataclass(frozen=True)
class Grid:
    """One metric laid out for a table.

    Attributes:
        metric: its name.
        rows: the columns of the long frame that make the rows; those in `added` come last.
        columns: those that make the columns.
        added: what had to join the rows, because results that differ in it would have shared a cell.
        cells: a row per cell: the labels of `rows` and `columns`; `value`, the mean over `points`; `seed_std`, their standard
            deviation (NaN for one point); `failed`, how many more points failed; `n`, the examples behind each value; `delta`,
            the mean change against the float model; its `low`, `high`, `level`, `p` and `detectable` (of a single point only);
            `p_holm`, `unclear` and `best`, which `significance.tested` fills; the `ids` of the points. NaN where unknown.
        context: the fields that are the same in every quantized cell and stand in neither rows nor columns.
        notes: what the caption says besides.
    """

    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    added: tuple[str, ...]
    cells: pd.DataFrame
    context: dict[str, str]
    notes: tuple[str, ...] = ()


def lay_out(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: str) -> Grid:
    """The cells of a table of `metric`, from a long frame (`sqbench.reporting.frame.results_frame`).

    Raises:
        UserError: an unknown or repeated row or column, an unknown metric, or nothing to show.
    """
    check_names(frame, rows, columns, metric)
    values = frame[frame["metric"] == metric]
    failed = frame["status"] == "failed"
    if len(values):  # a failed run of another evaluation would not have given this metric
        failed &= frame["eval"].isin(set(values["eval"]))
    deltas = frame[frame["metric"] == f"delta_{metric}"]
    shown, deltas = (
        part.assign(**{name: labels(part[name]) for name in GROUPABLE}) for part in (pd.concat([values, frame[failed]]), deltas)
    )
    keys = [*rows, *columns]
    added: list[str] = []
    for name in FIELDS:
        if name not in keys and (shown.groupby(keys)[name].nunique() > 1).any():
            added.append(name)
            keys.append(name)
    changes = _by_cell(deltas, keys)
    cells = [dict(zip(keys, key, strict=True)) | _cell(found, changes.get(key, [])) for key, found in _by_cell(shown, keys).items()]
    measured = shown if (shown["method"] == "fp").all() else shown[shown["method"] != "fp"]
    constant = [name for name in FIELDS if name not in keys and measured[name].nunique() == 1]
    context = {name: measured[name].iloc[0] for name in constant if measured[name].iloc[0]}
    sides = (*rows, *added)
    return Grid(metric, sides, tuple(columns), tuple(added), in_order(pd.DataFrame(cells), (*sides, *columns)), context)


def wide(grid: Grid, text: Callable[[Any], str]) -> pd.DataFrame:
    """The grid as a frame of texts in order: `text` of a cell (a named tuple of `grid.cells`), `--` where there is none."""
    texts: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for cell in grid.cells.itertuples(index=False):
        side, top = (tuple(getattr(cell, name) for name in names) for names in (grid.rows, grid.columns))
        texts[side, top] = text(cell)
    sides = list(dict.fromkeys(side for side, _ in texts))  # cells come sorted by rows
    tops = sorted({top for _, top in texts}, key=lambda top: [rank(*pair) for pair in zip(grid.columns, top, strict=True)])
    header = _index(tops, grid.columns) if grid.columns else pd.Index([grid.metric])
    body = [[texts.get((side, top), "--") for top in tops] for side in sides]
    return pd.DataFrame(body, index=_index(sides, grid.rows), columns=header, dtype="str")


def unit_of(metric: str) -> tuple[float, str]:
    """What a metric is divided by to be shown, and what that is called; of a task's metric, what goes for the metric."""
    return UNITS.get(family(metric), (1.0, ""))


def _decimals(metric: str) -> int:
    return _DECIMALS.get(family(metric), 4)


def number(value: float, metric: str, *, signed: bool = False, extra: int = 0) -> str:
    """A metric's value as tables show it, with `extra` decimals.

    >>> number(15.1, "perplexity"), number(0.3, "perplexity", signed=True, extra=1), number(123456.0, "perplexity")
    ('15.10', '+0.300', '1.2e5')
    """
    scaled = value / unit_of(metric)[0]
    if not math.isfinite(scaled):
        return str(scaled)
    sign = "+" if signed else ""
    if abs(scaled) >= 1e5:
        mantissa, exponent = format(scaled, f"{sign}.1e").split("e")
        return f"{mantissa}e{int(exponent)}"
    text = format(scaled, f"{sign}.{_decimals(metric) + extra}f")
    return text if text.strip("+-0.") else text.replace("-", sign)  # no negative zero


def change_text(delta: float, low: float, high: float, metric: str) -> str:
    """`+0.240 [0.200, 0.400]`, without the interval where it is unknown; coarse metrics get a decimal more for a small change.

    Of a speed `x3.53 [3.50, 3.60]`.
    """
    if metric in SPEEDS:
        return f"x{delta:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else "")
    extra = _extra(delta, metric)
    text = number(delta, metric, signed=True, extra=extra)
    bounds = ", ".join(number(bound, metric, extra=extra) for bound in (low, high))
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{bounds}]"


def _extra(delta: float, metric: str) -> int:
    """How many decimals more a change has than the metric."""
    return int(abs(delta / unit_of(metric)[0]) < 1 and _decimals(metric) < 4)


def cell_text(cell: Any, metric: str, *, with_n: bool = False) -> str:
    """`15.10 (+0.240 [0.200, 0.400])`, `15.10 ± 0.05 (3 seeds, +0.240)`, `fail`, or a mean that says how many runs failed.

    A change that is not significant is `n.s.`, and the cell says which would have been detected.
    """
    if cell.points == 0:
        return "fail"
    notes = [f"{cell.points} seeds"] * (cell.points > 1) + [f"{cell.failed} failed"] * (cell.failed > 0)
    if not math.isnan(cell.delta):
        notes.append(change_text(cell.delta, cell.low, cell.high, metric))
    if cell.unclear:
        notes.append(f"n.s., detectable {number(cell.detectable, metric, extra=_extra(cell.delta, metric))}")
    notes += [f"n={cell.n:.0f}"] * (with_n and not math.isnan(cell.n))
    spread = f" ± {number(cell.seed_std, metric)}" * (cell.points > 1)
    return number(cell.value, metric) + spread + f" ({', '.join(notes)})" * bool(notes)


def caption(grid: Grid) -> str:
    """What the table shows, what all of its results share, and how to read a cell."""
    cells, (_, unit) = grid.cells, unit_of(grid.metric)
    title = f"{grid.metric} ({unit})" if unit else grid.metric
    parts = [f"{title} by {', '.join(grid.rows)}" + f" (down) and {', '.join(grid.columns)} (across)" * bool(grid.columns)]
    if grid.context:
        parts.append("All with " + ", ".join(f"{name} {value}" for name, value in grid.context.items()))
    if grid.added:
        parts.append(f"Split by {', '.join(grid.added)}, so that no cell mixes them")
    if cells["delta"].notna().any():
        levels = " or ".join(f"{100 * level:.4g} %" for level in sorted(set(cells["level"][cells["low"].notna()])))
        change = "how many times as fast as the float model" if grid.metric in SPEEDS else "the change against the float model"
        parts.append(f"In brackets {change}" + f" [and its {levels} interval]" * bool(levels))
    if (cells["points"] > 1).any():
        parts.append("± is the standard deviation over seeds")
    counts = set(cells["n"].dropna())
    if len(counts) == 1:
        parts.append(f"n = {counts.pop():.0f} examples")
    return ". ".join([*parts, *grid.notes, "-- was not run, fail did not finish"]) + "."


def _texts(grid: Grid) -> pd.DataFrame:
    """The cells as people read them; n in each where it is not the same in all (else the caption has it)."""
    varies = grid.cells["n"].nunique() > 1
    return wide(grid, lambda cell: cell_text(cell, grid.metric, with_n=varies))


def _bold(grid: Grid) -> pd.DataFrame:
    """Which cells are bold, in the layout of their texts."""
    return wide(grid, lambda cell: "bold" if cell.best else "") == "bold"


def to_long_csv(frame: pd.DataFrame) -> str:
    """The long frame, unscaled numbers, empty where unknown."""
    return frame.to_csv(index=False, float_format=_LONG_FLOAT, lineterminator="\n")


def to_wide_csv(grid: Grid) -> str:
    """One unscaled number a cell. Where there are any, every column is followed by the spread and counts of several points, by the
    test against the float model, and by whether a cell is `best`, which is bold in the other formats.
    """
    parts = {"": wide(grid, lambda cell: _LONG_FLOAT % cell.value if cell.points else "fail")}
    if (grid.cells["points"] + grid.cells["failed"] > 1).any():
        parts[" seed_std"] = wide(grid, lambda cell: _LONG_FLOAT % cell.seed_std if cell.points > 1 else "--")
        parts[" points"] = wide(grid, lambda cell: str(cell.points))
        parts[" failed"] = wide(grid, lambda cell: str(cell.failed))
    if grid.cells["p_holm"].notna().any():
        for name in ("p", "p_holm", "detectable"):
            parts[f" {name}"] = wide(grid, _shown(name))
    if grid.cells["best"].any():
        parts[" best"] = wide(grid, lambda cell: str(cell.best).lower() if cell.points else "--")
    flat = {name + suffix: part.iloc[:, place] for place, name in enumerate(_heads(parts[""])) for suffix, part in parts.items()}
    return pd.DataFrame(flat).to_csv(lineterminator="\n")


def to_latex(grid: Grid) -> str:
    """A booktabs table (needs only `\\usepackage{booktabs}`), everything escaped."""
    texts = _texts(grid)
    minus = texts.map(lambda text: re.sub(r"(?<![\w-])-(?=\d)", "$-$", _typeset(text)))  # a minus, not a hyphen
    style = minus.where(~_bold(grid), minus.replace(_FIRST_WORD, r"\\textbf{\1}", regex=True)).style
    for axis, names in ((0, grid.rows), (1, grid.columns)):
        style = style.format_index(_typeset, axis=axis)
        style = style.format_index_names(_typeset, axis=axis) if names else style
    return "% needs \\usepackage{booktabs}\n" + style.to_latex(
        hrules=True,
        column_format="l" * len(grid.rows) + "r" * len(texts.columns),
        multirow_align="naive",  # the first of equal labels, then blanks: no \multirow package
        position_float="centering",
        caption=_typeset(caption(grid)),
        label=f"tab:{_slug(grid.metric)}",
    )


def to_markdown(grid: Grid) -> str:
    """A Markdown table, its columns aligned, and the caption below it."""
    texts = _texts(grid).map(_markdown)
    texts = texts.where(~_bold(grid), texts.replace(_FIRST_WORD, r"**\1**", regex=True))
    sides = texts.index.to_frame(index=False).map(_markdown).to_numpy()
    lines = [[*side, *row] for side, row in zip(sides, texts.to_numpy(), strict=True)]
    head = [_markdown(name) for name in (*grid.rows, *_heads(texts))]
    return _aligned([head, *lines], len(grid.rows)) + f"\n\n{_markdown(caption(grid))}\n"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], sides: int) -> str:
    """Aligned Markdown; the first `sides` columns are labels, flush left, the others numbers."""
    return _aligned([[_markdown(text) for text in line] for line in (head, *lines)], sides)


def _aligned(escaped: list[list[str]], sides: int) -> str:
    widths = [max(3, *(len(text) for text in column)) for column in zip(*escaped, strict=True)]
    escaped.insert(1, ["-" * width if place < sides else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    rows = ("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in escaped)
    return "\n".join(rows)


def write_tables(frame: pd.DataFrame, grid: Grid, folder: Path) -> list[Path]:
    """Write `long.csv`, and the grid as `METRIC.csv`, `.tex` and `.md`; each file is whole or not there."""
    stem = _slug(grid.metric)
    files = {"long.csv": to_long_csv(frame), f"{stem}.csv": to_wide_csv(grid)}
    files |= {f"{stem}.tex": to_latex(grid), f"{stem}.md": to_markdown(grid)}
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _by_cell(frame: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, ...], list[Any]]:
    """The rows of each cell as named tuples, in the order of the cells' labels. A frame for each would cost milliseconds."""
    numbers = frame[["point_id", "status", "value", *_TESTED, "n"]].astype({"n": "float64"})
    found: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for key, row in zip(zip(*(frame[name].tolist() for name in keys), strict=True), numbers.itertuples(index=False), strict=True):
        found[key].append(row)
    return dict(sorted(found.items()))


def _cell(found: Sequence[Any], changes: Sequence[Any]) -> dict[str, Any]:
    """The numbers of one cell; points that failed are counted, never left out without a word."""
    done = [row for row in found if row.status != "failed"]
    values = [row.value for row in done]
    counts = {row.n for row in done if not math.isnan(row.n)}
    paired = [row.value for row in changes] if len(changes) == len(done) else []  # no mean of part of the points
    with np.errstate(invalid="ignore"):  # the spread of infinite values is not known
        return {
            "value": np.mean(values) if values else math.nan,
            "seed_std": np.std(values, ddof=1) if len(values) > 1 else math.nan,
            "points": len(done),
            "failed": len(found) - len(done),
            "n": counts.pop() if len(counts) == 1 else math.nan,
            "delta": np.mean(paired) if paired else math.nan,
            **{name: getattr(changes[0], name) if len(paired) == 1 else math.nan for name in _TESTED},
            "p_holm": math.nan,
            "unclear": False,
            "best": False,
            "ids": tuple(row.point_id for row in done),
        }


def _shown(name: str) -> Callable[[Any], str]:
    """What writes one number of a cell."""
    return lambda cell: "--" if math.isnan(getattr(cell, name)) else _LONG_FLOAT % getattr(cell, name)


def _index(keys: Sequence[tuple[str, ...]], names: Sequence[str]) -> pd.Index:
    """Labels of one or several levels."""
    return pd.MultiIndex.from_tuples(keys, names=names) if len(names) > 1 else pd.Index([key for (key,) in keys], name=names[0])


def _heads(texts: pd.DataFrame) -> list[str]:
    """The column labels, one text each."""
    return [" / ".join(part or "-" for part in top) if isinstance(top, tuple) else top for top in texts.columns]


def _typeset(text: object) -> str:
    escaped = "".join(_LATEX.get(char, char) for char in printable(text))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped  # else an argument of the line break before it


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", printable(text))


def printable(text: object) -> str:
    """One line without control characters: a line break in a name breaks no table, an escape sequence no terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text))


def _slug(name: str) -> str:
    """A metric's name as part of a file name or label."""
    return re.sub(r"[^\w.,-]", "-", name)
