"""The names of fields, methods and metrics, and their order in every table and picture."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sqbench.errors import UserError

# The natural order of methods and metrics in every table. The baseline is first, then simple before elaborate.
METHODS = (
    *("fp", "rtn", "minmax", "ema_minmax", "mean_minmax", "percentile", "mse", "histogram", "entropy"),
    *("smoothquant", "awq", "qat", "qat_lsq"),
)
METRICS = (
    *("perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity", "top1", "top5", "acc", "acc_norm"),
    *("exact_match", "prefix", "kl_to_fp", "agreement", "sqnr_db", "loglik", "repetition"),
    *("tokens_per_s", "decode_tokens_per_s", "images_per_s", "latency_ms", "weight_bytes", "resident_bytes"),
)
# The fields that separate results, in the order of sorting. Only results that differ in nothing but their seeds share a cell.
FIELDS = (
    *("method", "bits", "alpha", "model", "head", "data", "eval", "window", "windows", "images"),
    *("beams", "samples", "source", "layers", "ops", "weights", "activations", "backend", "device", "variant"),
)
GROUPABLE = (*FIELDS, "seed", "point_id")  # allowed as rows and columns of a table
FILTERS = (*GROUPABLE, "status")  # allowed in where.NAME
EXACT = ("weight_bytes", "resident_bytes", "peak_rss_bytes")  # not averages over examples, so without n
INTEGERS = ("seed", "window", "windows", "images", "beams", "samples", "n", "gained", "lost")
_NUMERIC = ("alpha", *INTEGERS)
# Which way is better, by the whole name of a metric in any task: our evaluations, and the metrics that lm-eval knows by name.
# The direction of any other metric (a task's own) is unknown. Part of a name is no evidence: `glossary` is not a loss.
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
    """A sort key for a text of a column: the order of the field if it has one, else the alphabet.

    Alphas ascend and end with `auto`. Schemes start with the float model, then go from wide to narrow weights, then activations.
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
    """Whether less of a metric is better. None if it is unknown.

    >>> lower_is_better("wikitext/word_perplexity,none"), lower_is_better("glossary/acc"), lower_is_better("my_task/score")
    (True, False, None)
    """
    name = re.sub(r"_p(10|90)$", "", family(metric.removeprefix("delta_")))  # percentiles of a measurement
    return True if name in LOWER else False if name in HIGHER else None


def better(metric: str) -> str:
    """`lower is better` or `higher is better`. Empty if the direction is unknown."""
    return {True: "lower is better", False: "higher is better", None: ""}[lower_is_better(metric)]


def unsure(metric: str) -> UserError:
    """The error for a choice of the best where it is unknown which way is better."""
    return UserError(f"{metric}: whether more or less of it is better is not known")


def family(metric: str) -> str:
    """The name of a metric without its task. It decides the place in the order, the unit and the decimals.

    >>> family("passive_1/acc"), family("gsm8k/exact_match,strict-match"), family("perplexity")
    ('acc', 'exact_match', 'perplexity')
    """
    return metric.rpartition("/")[2].partition(",")[0]


def main_metric(names: Iterable[str]) -> str:
    """The first of these metrics in the natural order, with single tasks and sizes last. `perplexity` if there is none."""
    own = [name for name in names if name and not name.startswith("delta_")]
    whole = [name for name in own if "/" not in name and name not in EXACT]
    return min(whole or own, key=lambda name: rank("metric", name), default=METRICS[0])


def in_order(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by the `rank` of these columns, with a new index."""
    keys = []
    for name in by:
        texts = labels(frame[name])
        ranks = {text: rank(name, text) for text in set(texts)}  # few distinct texts, even in many rows
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
