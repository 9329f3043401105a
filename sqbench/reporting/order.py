"""The order of methods, formats and other fields in every table and picture, and which way of a metric is better."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sqbench.comparison import Metric
from sqbench.errors import UserError
from sqbench.records.fields import named

# The natural order of methods in every table. The baseline is first, then simple before elaborate.
METHODS = (
    *("fp", "rtn", "minmax", "ema_minmax", "mean_minmax", "percentile", "mse", "histogram", "entropy"),
    *("smoothquant", "awq", "gptq", "qat", "qat_lsq", "checkpoint", "peer"),
)
_NUMERIC = named(lambda field: field.numeric)
Key = tuple[Any, ...]


def rank(column: str, label: str) -> Key:
    """A sort key for a text of a column: the order of the field if it has one, else the alphabet.

    Alphas ascend and end with `auto`. Schemes start with the float model, then go from wide to narrow weights, then activations.
    """
    if column == "method":
        return (METHODS.index(label) if label in METHODS else len(METHODS), 0.0, 0.0, label)
    if column == "bits":
        widths = re.match(r"w(\d+)a(\d+)", label)
        if widths:
            return (1, -float(widths[1]), -float(widths[2]), label)
        floats = re.match(r"(?:mxfp|nvfp|fp|nf)(\d)(a16)?", label)
        if floats:
            alone = floats[2] is not None or label.startswith("nf")  # weights alone
            return (1, -float(floats[1]), -16.0 if alone else -float(floats[1]), label)
        return (0 if label == "fp" else 2, 0.0, 0.0, label)
    if column == "layers":
        return (2 if label else 0, 0.0, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(6), label))  # 2 before 10
    if column in _NUMERIC and label and label != "auto":
        return (1, as_float(label), 0.0, "")
    return (2 if label else 0, 0.0, 0.0, label)


def better(metric: Metric) -> str:
    """`lower is better` or `higher is better`. Empty if the direction is unknown."""
    return f"{metric.better} is better" if metric.better else ""


def unsure(metric: Metric) -> UserError:
    """The error for a choice of the best where it is unknown which way is better."""
    return UserError(f"{metric.name}: whether more or less of it is better is not known")


def in_order(frame: pd.DataFrame, by: Sequence[str], known: Mapping[str, Mapping[str, Key]] | None = None) -> pd.DataFrame:
    """The rows sorted by these columns, with a new index.

    Args:
        known: column -> text -> sort key, for columns that `rank` cannot order.
    """
    keys = []
    for name in by:
        texts = labels(frame[name])
        ranks = (known or {}).get(name) or {text: rank(name, text) for text in set(texts)}  # few distinct texts, even in many rows
        keys.append([ranks[text] for text in texts])
    places = list(zip(*keys, strict=True))
    return frame.iloc[sorted(range(len(frame)), key=places.__getitem__)].reset_index(drop=True)


def labels(column: pd.Series) -> list[str]:
    """The values of a column as texts. A missing value is an empty text."""
    return ["" if missing else str(value) for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)]


def as_float(value: Any) -> float:
    """The value as a float. NaN if it is not a number (lm-eval writes "N/A")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
