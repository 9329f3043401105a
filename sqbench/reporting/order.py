"""The names of fields, methods and metrics, and the order in which every table and picture has them."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

# The natural order of methods and metrics in every table: baseline, then from the simplest to the most elaborate.
METHODS = (
    *("fp", "rtn", "minmax", "ema_minmax", "mean_minmax", "percentile", "mse", "histogram", "entropy"),
    *("smoothquant", "awq", "qat", "qat_lsq"),
)
METRICS = (
    *("perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity", "top1", "top5", "acc", "acc_norm"),
    *("exact_match", "prefix", "kl_to_fp", "agreement", "sqnr_db", "loglik", "repetition"),
    *("tokens_per_s", "decode_tokens_per_s", "images_per_s", "latency_ms", "weight_bytes", "resident_bytes"),
)
# What tells two results apart, in the order of sorting. Results that differ in anything but their seeds never share a cell.
FIELDS = (
    *("method", "bits", "alpha", "model", "head", "data", "eval", "window", "windows", "images"),
    *("beams", "samples", "source", "layers", "ops", "weights", "activations", "backend", "device", "variant"),
)
GROUPABLE = (*FIELDS, "seed", "point_id")  # what rows and columns of a table may be made of
EXACT = ("weight_bytes", "resident_bytes", "peak_rss_bytes")  # not an average over examples: no n
INTEGERS = ("seed", "window", "windows", "images", "beams", "samples", "n", "gained", "lost")
_NUMERIC = ("alpha", *INTEGERS)
# Parts of the names of metrics where less is better.
_LOWER = ("perplexity", "per_byte", "kl_", "bytes", "latency", "loss", "repetition")


def rank(column: str, label: str) -> tuple[int, float, float, str]:
    """A sort key for a column's text: the field's own order where there is one, else the alphabet.

    Alphas go up and end with `auto`; schemes start with the float model and go from wide to narrow weights, then activations.
    """
    if column in ("method", "metric"):
        order, name = (METHODS, label) if column == "method" else (METRICS, label.removeprefix("delta_"))
        place = order.index(family(name)) if family(name) in order else len(order)
        return (place, float(name != family(name)), 0.0, name if name == label else f"{name} delta")
    if column == "bits":
        widths = re.match(r"w(\d+)a(\d+)", label)
        return (1, -float(widths[1]), -float(widths[2]), label) if widths else (0 if label == "fp" else 2, 0.0, 0.0, label)
    if column == "layers":
        return (2 if label else 0, 0.0, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(6), label))  # 2 before 10
    if column in _NUMERIC and label and label != "auto":
        return (1, as_float(label), 0.0, "")
    return (2 if label else 0, 0.0, 0.0, label)


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better: of lm-eval's names too."""
    return any(part in metric for part in _LOWER)


def family(metric: str) -> str:
    """What a metric is called whatever the task: its place in the order, its unit and its decimals go by that.

    >>> family("passive_1/acc"), family("gsm8k/exact_match,strict-match"), family("perplexity")
    ('acc', 'exact_match', 'perplexity')
    """
    return metric.rpartition("/")[2].partition(",")[0]


def main_metric(names: Iterable[str]) -> str:
    """The first of these metrics in the natural order, those of single tasks and sizes last; `perplexity` if there is none."""
    own = [name for name in names if name and not name.startswith("delta_")]
    whole = [name for name in own if "/" not in name and name not in EXACT]
    return min(whole or own, key=lambda name: rank("metric", name), default=METRICS[0])


def in_order(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by the `rank` of these columns, numbered anew."""
    keys = []
    for name in by:
        texts = labels(frame[name])
        ranks = {text: rank(name, text) for text in set(texts)}  # few, however many rows there are
        keys.append([ranks[text] for text in texts])
    places = list(zip(*keys, strict=True))
    return frame.iloc[sorted(range(len(frame)), key=places.__getitem__)].reset_index(drop=True)


def labels(column: pd.Series) -> list[str]:
    """The texts of a column, empty where there is no value."""
    return ["" if missing else str(value) for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)]


def as_float(value: Any) -> float:
    """A float; NaN for what is no number (lm-eval writes "N/A")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
