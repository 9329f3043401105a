"""Selection of the rows of the long frame for a table, and checks of what a table may hold."""

from collections.abc import Sequence

import pandas as pd

from sqbench.comparison import Metric
from sqbench.errors import UserError, known
from sqbench.records.fields import BASIS, EXAMPLES, GROUPABLE
from sqbench.reporting.order import labels, rank


def select(frame: pd.DataFrame, **wanted: Sequence[str] | None) -> pd.DataFrame:
    """The rows whose columns hold one of the wanted names. None accepts all.

    A float baseline stays if any row that was measured against it stays. A table thus keeps its reference.

    Raises:
        UserError: a wanted name is not in the column.
    """
    if all(names is None for names in wanted.values()):
        return frame.reset_index(drop=True)
    keep = pd.Series(True, index=frame.index)
    for column, names in wanted.items():
        present = set(labels(frame[column]))
        for name in names or ():
            if name not in present:
                raise UserError(f"where.{column}={name}: {known(name, present)}")
        if names is not None:
            keep &= pd.Series(labels(frame[column]), index=frame.index).isin(names)
    shared = pd.Series(list(zip(*(labels(frame[name]) for name in BASIS), strict=True)), index=frame.index, dtype=object)
    keep |= float_lines(frame) & shared.isin(set(shared[keep]))
    return frame[keep].reset_index(drop=True)


def float_lines(frame: pd.DataFrame) -> pd.Series:
    """Which rows belong to a float baseline. A float model in another dtype, measured against the baseline, is a point."""
    changed = set(frame["point_id"][frame["metric"].str.startswith("delta_", na=False)])
    return (frame["method"] == "fp") & ~frame["point_id"].isin(changed)


def check_names(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: str) -> None:
    """Raise UserError for an impossible table: no rows, an unknown or repeated name, or a metric that no point has."""
    if frame.empty or not rows:
        raise UserError("no result to show" if frame.empty else f"rows=[]: must have at least one name; {known('', GROUPABLE)}")
    for key, names in (("rows", rows), ("columns", columns)):
        for name in names:
            if name not in GROUPABLE:
                raise UserError(f"{key}=[{','.join(names)}]: unknown name {name}; {known(name, GROUPABLE)}")
            if [*rows, *columns].count(name) > 1:
                raise UserError(f"{key}=[{','.join(names)}]: {name} must stand only once in rows and columns")
    metrics = set(frame["metric"]) - {""}
    if metrics and metric not in metrics:  # if every point failed, any metric gives the table of failures
        raise UserError(f"metric={metric}: {known(metric, metrics)}")


def check_examples(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], metric: Metric) -> None:
    """Raise UserError if a table would mix results over different examples or with different op sets.

    A table holds one value of each field that decides the examples or operations, unless the field is among rows or columns.

    Sizes may be mixed: they do not depend on the examples.
    """
    shown = frame[(frame["metric"] == metric.name) & (frame["method"] != "fp")]
    for name in EXAMPLES if not metric.exact else ():
        values = sorted(set(labels(shown[name])) - {""}, key=lambda label: rank(name, label))
        if len(values) > 1 and name not in (*rows, *columns):
            differ = "quantize other operations" if name == "ops" else "are over other examples"
            raise UserError(
                f"{name}={','.join(values)}: results that {differ} make no table together; use where.{name}={values[0]},"
                f" or rows=[{','.join([*rows, name])}]"
            )
