"""The page: the data of every section in one template, with style, scripts and plotly.js included."""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sqbench.comparison import Metric
from sqbench.console.overrides import pasted
from sqbench.reporting.html.answer import Answer, answer
from sqbench.reporting.html.claims import claims
from sqbench.reporting.html.comparison import comparison
from sqbench.reporting.html.costs import memory, seconds
from sqbench.reporting.html.figures import Figure, drawn
from sqbench.reporting.html.formats import formats
from sqbench.reporting.html.layers import layers
from sqbench.reporting.html.lines import against_alpha, against_bits
from sqbench.reporting.html.made import made
from sqbench.reporting.html.progress import progress
from sqbench.reporting.html.results import Results, read
from sqbench.reporting.html.surfaces import EXAMPLE, surfaces
from sqbench.reporting.html.text import data, in_script, visible
from sqbench.reporting.html.tradeoffs import against_bytes, against_speed
from sqbench.reporting.studies import Study
from sqbench.storage.files import write_text

_ASSETS = files("sqbench.reporting.html") / "assets"
_SCRIPTS = ("start.js", "theme.js", "choose.js", "table.js", "figures.js", "layers.js", "surfaces.js", "points.js", "live.js")
_SECTIONS = (
    ("answer", "Answer"),
    ("table", "Comparison"),
    ("alpha", "Alpha"),
    ("bits", "Bits"),
    ("formats", "Formats"),
    ("layers", "Layers"),
    ("surfaces", "Surfaces"),
    ("cost", "Cost"),
    ("claims", "Claims"),
    ("failed", "Failed"),
    ("made", "Made"),
)
_FIGURES = 60  # in a page; with more, curves show the deciding metric only


@dataclass(frozen=True)
class Shown:
    """A study with its figures."""

    study: Study
    answer: Answer
    tradeoffs: list[Figure]
    alpha: list[Figure]
    bits: list[Figure]
    costs: list[Figure]


def write(folder: Path, *, now: float | None = None, live: float | None = None) -> Path:
    """Write `folder/report/index.html`.

    Args:
        folder: a results folder that exists. An empty one gives a page that explains how to make the first point.
        now: seconds since the epoch, shown in the page. None uses the clock.
        live: seconds between the checks of a served page for a new build. None for a static page.
    """
    path = folder / "report" / "index.html"
    write_text(path, render(folder, now=time.time() if now is None else now, live=live))
    return path


def render(folder: Path, *, now: float, live: float | None = None) -> str:
    """The page as text."""
    results = read(folder)
    points, machines = made(results)
    by_layer = layers(results)
    turned, more_surfaces = surfaces(folder)
    swept = progress(folder, results.records, now)
    failed = sum(point.failed for point in points)
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    return (
        _environment()
        .get_template("index.html.j2")
        .render(
            results=results,
            where=pasted("results_dir", folder),
            counts={"done": len(points) - failed, "failed": failed},
            sections=_SECTIONS if results.records else (),
            shown=[_shown(results, study) for study in results.studies],
            table=comparison(results) if results.records else None,
            formats=formats(results),
            layers=data(by_layer),
            layer_count=len(by_layer["points"]),
            layers_left=by_layer["left"],
            surfaces=turned,
            surfaces_data=data(turned),
            more_surfaces=more_surfaces,
            surfaces_example=EXAMPLE,
            claims=claims(folder),
            points=points,
            machines=machines,
            progress=swept,
            eta=_duration(swept.seconds_left) if swept and swept.seconds_left is not None else "",
            built=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
            stamp=stamp(now),
            live=live,
            style=Markup(_asset("page.css")),
            script=Markup(script),
            plotly=Markup(get_plotlyjs()),
            hashes=[_hash(script), _hash(get_plotlyjs())],
        )
    )


def stamp(now: float) -> str:
    """A text that identifies one build of a page."""
    return f"{now:.3f}"


def _duration(seconds_: float) -> str:
    """A duration in words: `40 s`, `5 min`, `2 h 10 min`."""
    minutes = round(seconds_ / 60)
    if seconds_ < 60:
        return f"{seconds_:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _shown(results: Results, study: Study) -> Shown:
    metrics = study.metrics if len(results.studies) * len(study.metrics) * 2 <= _FIGURES else study.metrics[:1]

    def each(of: Callable[[Study, Metric], tuple[go.Figure, str]]) -> list[Figure]:
        return [drawn(metric.name, partial(of, study, metric)) for metric in metrics]

    return Shown(
        study,
        answer(results, study),
        [
            drawn(f"{study.metric.name} against the bytes of the weights", partial(against_bytes, study)),
            drawn(f"{study.metric.name} against speed", partial(against_speed, results, study)),
        ],
        each(against_alpha),
        each(against_bits),
        [drawn("Seconds of every stage", partial(seconds, results, study)), drawn("Memory", partial(memory, results, study))],
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sqbench.reporting.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["in_script"] = in_script
    environment.filters["as_data"] = data
    return environment


def _finalize(value: Any) -> Any:
    """A value that a template prints, without control characters and direction overrides."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The hash by which a content security policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
