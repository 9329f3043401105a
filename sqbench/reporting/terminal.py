"""The output at the end of a sweep: a table of its points, and the commands that run failed points again."""

import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sqbench.comparison import Metric, main_metric
from sqbench.records.fields import CELLS, FORMATS, SIDES
from sqbench.records.outcome import Outcome
from sqbench.records.record import Record
from sqbench.reporting.cells import printable, value_text
from sqbench.reporting.frame import CHANGE, metric_of, metrics_of, results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.order import labels
from sqbench.reporting.significance import Samples, tested
from sqbench.reporting.units import change_text, number

_STYLES = {"done": "green", "skipped": "dim", "FAILED": "bold red", "float": "bold"}
_METRICS = {"kl_to_fp": "KL", "agreement": "agree", "weight_bytes": "MB"}
_SHORT = {"perplexity": "ppl", "bits_per_byte": "bpb", "top1": "top1 %", "top5": "top5 %"} | _METRICS


def sweep_table(
    records: Iterable[Record], skipped: Collection[str] = (), metric: str | None = None, samples: Samples | None = None
) -> Table:
    """The points of a sweep, one per row, below their float baseline. The mean over seeds is below the seeds.

    Args:
        records: records of the points, finished and failed.
        skipped: ids of points that were finished before this sweep.
        metric: the metric beside the change against the baseline. By default it is the first metric in the natural order.
        samples: samples of the points, for the interval of a mean over seeds.
    """
    records = list(records)
    seconds = {record.point_id: record.seconds for record in records}
    frame = results_frame(records)
    declared = metrics_of(frame)
    shown = main_metric(declared.values()) if metric is None else metric_of(frame, metric)
    keys = ["point_id", "status", *CELLS, "seed"]
    frame = frame.assign(**{name: labels(frame[name]) for name in keys})
    measured = frame[frame["method"] != "fp"]
    # 80 columns have no room for fields that all rows share.
    sides = [name for name in SIDES if measured[name].nunique() > 1]
    # Formats are shown only if one scheme name stands for several.
    unclear = {name: set(frame["bits"][frame.groupby("bits")[name].transform("nunique") > 1]) for name in FORMATS}
    timed = bool(frame["float"].notna().any())
    means = _means(frame, records, shown, samples)
    others = {name: title for name, title in _METRICS.items() if name != shown.name}

    # Columns fold and never crop, so no digit is lost. The widest fold first: at 80 columns these are notes and the interval.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    levels = "/".join(f"{100 * level:.4g}%" for level in sorted(set(frame["level"].dropna())))
    change_title = f"Δ fp [{levels}]" if levels else "Δ fp"
    for title in ("method", "bits", "alpha"):
        table.add_column(title, overflow="fold")
    for title in (_SHORT.get(shown.name, shown.name), *["float"] * timed, change_title, *others.values(), "s"):
        table.add_column(as_text(title), justify="right", overflow="fold")
    table.add_column("state", overflow="fold")

    groups = frame.groupby(keys, sort=False)
    left = Counter(tuple(rows.iloc[0][field] for field in CELLS) for _, rows in groups)
    for _, rows in groups:
        point, results = rows.iloc[0], rows.set_index("metric")
        change = results.loc[f"{CHANGE}{shown.name}"] if f"{CHANGE}{shown.name}" in results.index else None
        notes = [f"{name}={point[name]}".removeprefix("variant=") for name in sides if point[name]]
        notes += [f"{name}={point[name]}" for name in FORMATS if point["bits"] in unclear[name]]
        cells = [point["bits"], point["alpha"], _value(results, shown)]
        cells += ["--" if change is None or math.isnan(change["float"]) else number(change["float"], shown)] * timed
        cells.append("--" if change is None else change_text(change["value"], change["low"], change["high"], shown))
        cells += [_value(results, declared.get(name) or Metric(name)) for name in others]
        spent = seconds.get(point["point_id"])
        cells.append("--" if spent is None else f"{spent:.1f}" if spent < 100 else f"{spent:.0f}")
        state = _state(point["point_id"], point["status"], skipped)
        name = Text("\n").join(as_text(part) for part in (point["method"], *notes))
        table.add_row(name, *map(as_text, cells), Text(state, style=_STYLES[state]))
        key = tuple(point[field] for field in CELLS)
        left[key] -= 1
        if key in means and not left[key]:
            mean, blank = means[key], [""] * (len(others) + 1)
            change_of_mean = "--" if math.isnan(mean.delta) else change_text(mean.delta, mean.low, mean.high, shown)
            beside = [number(mean.float, shown) if not math.isnan(mean.float) else "--"] * timed
            row = [point["bits"], point["alpha"], value_text(mean, shown), *beside, change_of_mean, *blank]
            name = Text("\n").join([as_text(point["method"]), Text("mean ± over seeds")])
            table.add_row(name, *map(as_text, row), Text(f"{mean.points} seeds"))
    return table


def _means(frame: pd.DataFrame, records: Sequence[Record], metric: Metric, samples: Samples | None) -> dict[tuple[str, ...], Any]:
    """The cells of several finished seeds, by the fields of their points: mean, spread, and mean change with its interval."""
    values = frame[(frame["metric"] == metric.name) & (frame["point_id"] != "")]
    seeds = values.groupby(list(CELLS))["point_id"].transform("nunique")
    repeated = frame[frame["point_id"].isin(values["point_id"][seeds > 1])]
    if repeated.empty:
        return {}
    grid = lay_out(repeated, CELLS, (), metric.name)
    grid = grid if samples is None else tested(grid, records, samples)
    cells = (cell for cell in grid.cells.itertuples(index=False) if cell.points > 1)
    return {tuple(getattr(cell, name) for name in CELLS): cell for cell in cells}


def print_failures(outcomes: Iterable[Outcome], console: Console | None = None) -> None:
    """Print the id, the error and the command of each failed point. Print nothing if none failed."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    console = console or Console(stderr=True)
    if failed:
        console.print(Text(f"{len(failed)} failed:", style=_STYLES["FAILED"]))
    for outcome in failed:
        command = shlex.join(["python", "-m", "sqbench.run", *outcome.overrides])
        # soft_wrap, because a command with a line break cannot be pasted.
        console.print(as_text(f"  {outcome.point_id}  {outcome.error or 'unknown error'}"), soft_wrap=True)
        console.print(as_text(f"    {command}"), soft_wrap=True)


def _value(results: Any, metric: Metric) -> str:
    return number(results.at[metric.name, "value"], metric) if metric.name in results.index else "--"


def _state(point_id: str, status: str, skipped: Collection[str]) -> str:
    if status == "failed":
        return "FAILED"
    if not point_id:
        return "float"
    return "skipped" if point_id in skipped else "done"


def as_text(text: object) -> Text:
    """User text for the terminal. It is not read as markup, and control characters become spaces."""
    return Text(printable(text))
