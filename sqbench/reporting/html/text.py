"""Text on its way into the page: names of models, errors and overrides may hold anything; metrics have units."""

import html
import json
from typing import Any

from markupsafe import Markup

from sqbench.reporting import order
from sqbench.reporting.units import unit_of


def visible(text: str) -> str:
    """The text without control characters and direction overrides; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def clean(value: Any) -> Any:
    """Plain data with every text `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): clean(part) for key, part in value.items()}
    return [clean(part) for part in value] if isinstance(value, list | tuple) else value


def in_figure(text: str) -> str:
    """A text that Plotly, which reads tags in labels, shows as it is."""
    return html.escape(visible(text), quote=False)


def data(value: Any) -> Markup:
    """Plain data as JSON for a `script` element."""
    return in_script(json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def in_script(text: str) -> Markup:
    """JSON that is safe inside a `script` element: nothing in it ends the element or starts another."""
    for char, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(char, code)
    return Markup(text)


def named_metric(metric: str, *, better: bool = False) -> str:
    """`top1 (%, higher is better)`."""
    unit = unit_of(metric)[1]
    notes = [*([unit] if unit else []), *([order.better(metric)] if better and order.better(metric) else [])]
    return f"{metric} ({', '.join(notes)})" if notes else metric
