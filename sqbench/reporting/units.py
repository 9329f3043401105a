"""Numbers for readers: in the unit and decimals of their metric, and changes with their intervals."""

import math

from sqbench.comparison import Metric


def number(value: float, metric: Metric, *, signed: bool = False, extra: int = 0) -> str:
    """The value of a metric as in tables, with `extra` more decimals.

    >>> loss = Metric("perplexity", decimals=2)
    >>> number(15.1, loss), number(0.3, loss, signed=True, extra=1), number(123456.0, loss)
    ('15.10', '+0.300', '1.2e5')
    """
    scaled = value / metric.scale
    if not math.isfinite(scaled):
        return str(scaled)
    sign = "+" if signed else ""
    if abs(scaled) >= 1e5:
        mantissa, exponent = format(scaled, f"{sign}.1e").split("e")
        return f"{mantissa}e{int(exponent)}"
    text = format(scaled, f"{sign}.{metric.decimals + extra}f")
    return text if text.strip("+-0.") else text.replace("-", sign)  # no negative zero


def change_text(delta: float, low: float, high: float, metric: Metric) -> str:
    """A change with its interval, if known: `+0.240 [0.200, 0.400]`, or `x3.53 [3.50, 3.60]` for a speed.

    Metrics with few decimals get one more for a small change.
    """
    if metric.speed:
        return f"x{delta:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else "")
    extra = extra_decimals(delta, metric)
    text = number(delta, metric, signed=True, extra=extra)
    bounds = ", ".join(number(bound, metric, extra=extra) for bound in (low, high))
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{bounds}]"


def extra_decimals(delta: float, metric: Metric) -> int:
    """The number of further decimals of a change, compared with its metric."""
    return int(abs(delta / metric.scale) < 1 and metric.decimals < 4)
