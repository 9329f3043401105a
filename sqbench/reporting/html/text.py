"""Text for the page. Names of models, errors and overrides may hold any characters. Metrics get units."""

import html
import json
from typing import Any

from markupsafe import Markup

from sqbench.comparison import Metric
from sqbench.reporting import order


def visible(text: str) -> str:
    """The text with a space for each control character and direction override. Line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def clean(value: Any) -> Any:
    """Plain data with `visible` applied to every text."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): clean(part) for key, part in value.items()}
    return [clean(part) for part in value] if isinstance(value, list | tuple) else value


def in_figure(text: str) -> str:
    """The text escaped for Plotly, which reads tags in labels."""
    return html.escape(visible(text), quote=False)


def data(value: Any) -> Markup:
    """Plain data as JSON for a `script` element."""
    return in_script(json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def in_script(text: str) -> Markup:
    """JSON made safe for a `script` element. Nothing in it ends the element or starts another."""
    for char, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(char, code)
    return Markup(text)


def named_metric(metric: Metric, *, better: bool = False) -> str:
    """A metric with its unit, and optionally its direction: `top1 (%, higher is better)`."""
    notes = [note for note in (metric.unit, order.better(metric) * better) if note]
    return f"{metric.name} ({', '.join(notes)})" if notes else metric.name
