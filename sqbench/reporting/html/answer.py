"""The answer section: what to use, and the best point of every format with its costs, gains and ties."""

import math
from dataclasses import dataclass
from typing import Any

from sqbench.errors import UserError
from sqbench.records.store import Store
from sqbench.reporting.candidates import Candidates, candidates
from sqbench.reporting.html.results import Results
from sqbench.reporting.html.text import named_metric
from sqbench.reporting.order import rank
from sqbench.reporting.recommendation import Wanted, in_words, loss, megabytes, nearest, recommend, sentence, worse
from sqbench.reporting.studies import Study
from sqbench.reporting.timings import WORKLOADS
from sqbench.reporting.units import number

MOST_COMPARED = 30  # candidates; of more, only the best of each format are compared with all: pairs grow quadratically


@dataclass(frozen=True)
class Best:
    """The best point of a format.

    Attributes:
        bits, words: the name of the scheme, and the same in plain words.
        change: the change against the float model, with its interval. Empty if it was not compared.
        note: the change that the test would have detected. Empty if the change is significant or not tested.
        megabytes: size of the weights. Empty if unknown.
        speeds: how many times as fast as the float model, in the order of `Answer.speeds`. Empty if unknown.
        timed: backend and device of the speeds.
        points: ids of its points.
        beside: the other candidates that do not differ significantly. None if they cannot be compared.
        tried: the number of finished candidates of this format.
    """

    bits: str
    words: str
    name: str
    value: str
    change: str
    note: str
    megabytes: str
    speeds: tuple[str, ...]
    timed: str
    points: tuple[str, ...]
    beside: tuple[str, ...] | None
    tried: int


@dataclass(frozen=True)
class Answer:
    """The answer of a study.

    Attributes:
        metric: the metric with its unit.
        use: a sentence that names the point to use. Empty if there is none.
        point: the id of that point.
        floating, megabytes: value and size of the float model. Empty if unknown.
        speeds: the timed workloads.
        best: the best point of every format, from wide to narrow.
        failed: the number of cells without a finished point.
        notes: sentences about the tests.
        unranked: why there is no best, although there are points.
        choices: plain data from which the page chooses by the reader's own limits.
    """

    metric: str
    use: str
    point: str
    floating: str
    megabytes: str
    speeds: tuple[str, ...]
    best: tuple[Best, ...]
    failed: int
    notes: tuple[str, ...]
    unranked: str
    choices: dict[str, Any]


def answer(results: Results, study: Study) -> Answer:
    """The answer of a study, from tests that pair its points by example."""
    metric = study.metric
    try:
        found = candidates(study, results.frame, results.records, Store(results.folder), metric.name)
    except UserError as reason:
        floats = study.frame[(study.frame["method"] == "fp") & (study.frame["metric"] == metric.name)]["value"].tolist()
        floating = number(floats[0], metric) if floats else ""
        return Answer(named_metric(metric), "", "", floating, "", (), (), 0, (), f"There is no best: {reason}.", {})
    timed = tuple(name for name in WORKLOADS if any(name in one.speeds for one in found.items))
    places: dict[str, list[int]] = {}
    for at, one in enumerate(found.items):
        places.setdefault(one.bits, []).append(at)
    places = dict(sorted(places.items(), key=lambda item: rank("bits", item[0])))
    best = tuple(_best(found, at, timed) for at in places.values())
    # A study of speeds measures no loss, so it recommends nothing. Studies of accuracy recommend a format.
    chosen = None if study.metric.speed else recommend(found, Wanted())
    return Answer(
        named_metric(metric),
        "" if chosen is None or chosen.use is None else sentence(found, chosen.use),
        "" if chosen is None or chosen.use is None else next(iter(found.items[chosen.use].ids), ""),
        "" if math.isnan(found.floating) else number(found.floating, metric),
        megabytes(found.float_megabytes),
        tuple(WORKLOADS[name] for name in timed),
        best,
        found.failed,
        found.notes,
        "",
        _choices(found, timed, [min(at, key=lambda place: worse(found, place)) for at in places.values()]),
    )


def _best(found: Candidates, places: list[int], timed: tuple[str, ...]) -> Best:
    at = min(places, key=lambda place: worse(found, place))
    one, ties = found.items[at], found.ties(at)
    note = f"n.s., detectable {one.detectable}" if one.clear is False else ""
    return Best(
        one.bits,
        in_words(one.bits),
        one.name,
        number(one.value, found.metric),
        one.change,
        note,
        megabytes(one.megabytes),
        tuple(f"x{one.speeds[name]:.2f}" if name in one.speeds else "" for name in timed),
        one.timed,
        one.ids,
        None if ties is None else tuple(f"{found.items[tie.at].bits} {found.items[tie.at].name}" for tie in ties),
        len(places),
    )


def _choices(found: Candidates, timed: tuple[str, ...], best: list[int]) -> dict[str, Any]:
    """The data of every candidate from which the page's script chooses.

    `recommend` makes the same choice in Python. A test compares both.
    """
    compared = range(len(found.items)) if len(found.items) <= MOST_COMPARED else best
    items = []
    for at, one in enumerate(found.items):
        ties = found.ties(at) if at in compared else None
        items.append(
            {
                "bits": one.bits,
                "name": one.name,
                "says": sentence(found, at),
                "loss": loss(found, at),
                "value": number(one.value, found.metric),
                "worse": worse(found, at) if math.isfinite(one.value) else None,
                "mb": None if math.isnan(one.megabytes) else one.megabytes,
                "most": None if math.isnan(one.most) else one.most,
                "speeds": {WORKLOADS[name]: one.speeds[name] for name in timed if name in one.speeds},
                "timed": one.timed,
                "point": next(iter(one.ids), ""),
                "ties": None if ties is None else [tie.at for tie in ties],
                "apart": "" if ties is None else nearest(found, ties),
            }
        )
    workloads = [WORKLOADS[name] for name in timed]
    return {"metric": found.metric.name, "unit": found.metric.unit, "speeds": workloads, "items": items}
