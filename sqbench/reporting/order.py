"""The names of fields, methods and metrics, and the order in which every table and picture has them."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sqbench.errors import UserError

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
FILTERS = (*GROUPABLE, "status")  # what results may be chosen by
EXACT = ("weight_bytes", "resident_bytes", "peak_rss_bytes")  # not an average over examples: no n
INTEGERS = ("seed", "window", "windows", "images", "beams", "samples", "n", "gained", "lost")
_NUMERIC = ("alpha", *INTEGERS)
# Which way is better, by the whole name that a metric has in whatever task: of our evaluations, and of those that lm-eval knows by
# name. Of any other (a task's own) nothing is known: a part of a name says nothing, `glossary` is no loss.
LOWER = (
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "kl_to_fp", "repetition", "latency_ms"),
    *("weight_bytes", "resident_bytes", "peak_rss_bytes", "brier_score", "ter"),
)
HIGHER = (
    *("top1", "top5", "agreement", "sqnr_db", "exact_match", "prefix", "loglik"),
    *("tokens_per_s", "decode_tokens_per_s", "images_per_s"),
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "mcc", "f1", "bleu", "chrf", "chrf++", "likelihood"),
    *("rouge1", "rouge2", "rougeL"),
)


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


def lower_is_better(metric: str) -> bool | None:
    """Whether less of a metric is better; None where nobody has said so.

    >>> lower_is_better("wikitext/word_perplexity,none"), lower_is_better("glossary/acc"), lower_is_better("my_task/score")
    (True, False, None)
    """
    name = re.sub(r"_p(10|90)$", "", family(metric.removeprefix("delta_")))  # the spread of a measurement
    return True if name in LOWER else False if name in HIGHER else None


def better(metric: str) -> str:
    """`lower is better` or `higher is better`; empty where neither is known."""
    return {True: "lower is better", False: "higher is better", None: ""}[lower_is_better(metric)]


def unsure(metric: str) -> UserError:
    """What is wrong where the best has to be told from the rest, and nobody has said which way is better."""
    return UserError(f"{metric}: whether more or less of it is better is not known")


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
