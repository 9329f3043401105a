"""`python -m sqbench.collect`: tables from the records under results_dir. Its values are in conf/collect.yaml."""

import gc
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sqbench.comparison import main_metric
from sqbench.console.answer import reader
from sqbench.console.overrides import pasted
from sqbench.errors import UserError, known
from sqbench.records.fields import FILTERS
from sqbench.records.record import Record
from sqbench.records.store import Store, refuse_collection
from sqbench.reporting.frame import metrics_of, results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.latex import to_latex, to_paper
from sqbench.reporting.noise import told_most
from sqbench.reporting.outliers import OUTLIERS, outliers_frame, write_outliers
from sqbench.reporting.selection import check_examples, select
from sqbench.reporting.sensitivity import SENSITIVITY, sensitivity_frame, write_sensitivity
from sqbench.reporting.shares import share_notes
from sqbench.reporting.significance import tested
from sqbench.reporting.tables import to_markdown, write_tables


class Style(StrEnum):
    """The style of the LaTeX table."""

    plain = "plain"
    paper = "paper"


def every() -> dict[str, Any]:
    """The default of `where`, which shows all results. A field may be a name, a list of names, or null for all.

    The float baseline of the shown results stays. The fields stand under `where`, because `model=` or `method=` is a config group.
    """
    return dict.fromkeys(FILTERS)


@dataclass
class CollectConfig:
    """The settings of `sqbench.collect`."""

    results_dir: str = "results"
    rows: list[str] = field(default_factory=lambda: ["method", "alpha"])  # columns of long.csv that make the rows
    columns: list[str] = field(default_factory=lambda: ["bits"])  # and those that make the columns
    metric: str | None = None  # null: perplexity, or else the first that the records have; outliers, sensitivity: of layers
    where: dict[str, Any] = field(default_factory=every)
    style: Style = Style.plain  # of METRIC.tex: plain needs booktabs only; paper has blocks, table notes and footnotes
    caption: str | None = None  # of style=paper, instead of experiment and metric
    label: str | None = None  # to refer to it by, instead of tab:EXPERIMENT-METRIC


def collect(config: CollectConfig) -> tuple[str, list[Path]]:
    """Write the tables of one metric to `results_dir/tables`.

    Returns:
        The table as Markdown, and the files written.

    Raises:
        UserError: there are no records, or a name in the config is unknown.
    """
    records = told_most(records_of(config.results_dir, "collect"))
    frame = results_frame(records)
    folder = Path(config.results_dir).expanduser() / "tables"
    shown = chosen(frame, config.where)
    points = set(shown["point_id"])
    if config.metric == OUTLIERS:
        return write_outliers(outliers_frame(Store(config.results_dir).records(points), points), folder)
    if config.metric == SENSITIVITY:
        return write_sensitivity(sensitivity_frame(Store(config.results_dir).records(points), points), folder)
    metric = config.metric or main_metric(metrics_of(shown).values()).name
    grid = lay_out(shown, config.rows, config.columns, metric)
    check_examples(shown, config.rows, config.columns, grid.metric)
    grid = tested(grid, records, Store(config.results_dir).samples)
    grid = replace(grid, notes=(*grid.notes, *share_notes(record for record in records if record.point_id in points)))
    latex = to_latex
    if config.style == Style.paper:
        experiment = experiment_of(record for record in records if record.point_id in points)
        latex = partial(to_paper, experiment=experiment, heading=config.caption or "", label=config.label or "")
    elif config.caption or config.label:
        raise UserError("caption and label are of style=paper; style=plain says what the table shows by itself")
    return to_markdown(grid), write_tables(frame, grid, folder, latex)  # long.csv always has all results


def records_of(results_dir: str, command: str) -> list[Record]:
    """All whole records of a results folder, without `quantized`.

    Args:
        command: the asking command for the error message, for example `collect`.

    Raises:
        UserError: there are none.
    """
    folder = Path(results_dir).expanduser()
    records = list(Store(folder).records(brief=True))
    if not records:
        refuse_collection(results_dir, command)
        where = "no readable record in its runs/" if folder.is_dir() else f"no such folder (from {Path.cwd()})"
        command = f"python -m sqbench.run {pasted('results_dir', results_dir)}"
        raise UserError(f"results_dir={results_dir}: {where}; `{command}` makes the first")
    return records


def experiment_of(records: Iterable[Record]) -> str:
    """The name of the experiment in the commands of all of these points. Empty if there is no common one."""
    named = set()
    for record in records:
        words = shlex.split(record.provenance.get("command", ""))
        named.add(next((word.partition("=")[2] for word in words if word.startswith(("experiment=", "+experiment="))), ""))
    return named.pop() if len(named) == 1 else ""


def chosen(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of the long frame that are asked for.

    Raises:
        UserError: a name is unknown, or no row has all of them.
    """
    for name in where:
        if name not in FILTERS:
            raise UserError(f"where.{name}: {known(name, FILTERS)}")
    wanted = {name: _names(value) for name, value in where.items()}
    shown = select(frame, **wanted)
    if shown.empty:
        given = ", ".join(f"where.{name}=[{','.join(names)}]" for name, names in wanted.items() if names is not None)
        raise UserError(f"{given}: no point matches all of them; one of them less shows more")
    return shown


def _names(value: Any) -> list[str] | None:
    """The value of a filter as names. An alpha of 0.50 becomes `0.5`, as in the frame."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    return [format(item, ".10g") if isinstance(item, float) else str(item) for item in items]


ConfigStore.instance().store(name="collect_schema", node=CollectConfig)


def main() -> int:
    """Run the command line. The table goes to stdout, errors that the user can fix to stderr, with exit status 2."""
    gc.disable()  # 10,000 records are a million objects without cycles; the search for cycles takes a tenth of the time
    return reader("collect", _answer)


def _answer(cfg: DictConfig) -> None:
    table, files = collect(OmegaConf.to_object(cfg))  # type: ignore[arg-type]
    sys.stdout.write(table + "\n" + "".join(f"{path}\n" for path in files))


if __name__ == "__main__":
    sys.exit(main())
