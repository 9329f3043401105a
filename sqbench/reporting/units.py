"""Numbers for readers: units, decimals, and changes with their intervals."""

import math

from sqbench.reporting.order import family

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
# The change of these metrics is a factor: how many times as fast as float. 1: the metric grows with speed; -1: it falls.
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
}  # metric -> divisor, and name of the shown unit


def unit_of(metric: str) -> tuple[float, str]:
    """The divisor and the name of the unit in which a metric is shown. A task's metric has the unit of its family."""
    return UNITS.get(family(metric), (1.0, ""))


def _decimals(metric: str) -> int:
    return _DECIMALS.get(family(metric), 4)


def number(value: float, metric: str, *, signed: bool = False, extra: int = 0) -> str:
    """The value of a metric as in tables, with `extra` more decimals.

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
    """A change with its interval, if known: `+0.240 [0.200, 0.400]`, or `x3.53 [3.50, 3.60]` for a speed.

    Metrics with few decimals get one more for a small change.
    """
    if metric in SPEEDS:
        return f"x{delta:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else "")
    extra = extra_decimals(delta, metric)
    text = number(delta, metric, signed=True, extra=extra)
    bounds = ", ".join(number(bound, metric, extra=extra) for bound in (low, high))
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{bounds}]"


def extra_decimals(delta: float, metric: str) -> int:
    """The number of further decimals of a change, compared with its metric."""
    return int(abs(delta / unit_of(metric)[0]) < 1 and _decimals(metric) < 4)
