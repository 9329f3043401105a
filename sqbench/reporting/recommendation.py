"""Recommended formats: the smallest, the fastest and the most accurate candidate within the limits."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqbench.reporting.candidates import Candidate, Candidates, Tie
from sqbench.reporting.timings import WORKLOADS
from sqbench.reporting.units import number


@dataclass(frozen=True)
class Wanted:
    """The limits for a candidate. None is no limit.

    Attributes:
        max_mb: most megabytes of its weights as stored.
        max_loss: largest loss against the float model, at the far end of its interval, in the units of tables.
        min_speed: smallest speed, as a multiple of the float model's.
        speed: the metric of that speed.
    """

    max_mb: float | None = None
    max_loss: float | None = None
    min_speed: float | None = None
    speed: str = "tokens_per_s"


@dataclass(frozen=True)
class Recommendation:
    """The answer.

    Attributes:
        use: the place of the candidate to use. It is the smallest of the best one and its ties. None if none is within the limits.
        smallest, fastest, best: places of candidates. `fastest` is None if no speed is known.
        ties: the ties of `use` among candidates within the limits. None if they cannot be compared.
        left_out: the number of candidates outside the limits, by the limit they miss.
    """

    use: int | None
    smallest: int | None
    fastest: int | None
    best: int | None
    ties: tuple[Tie, ...] | None
    left_out: Counter[str]


def recommend(found: Candidates, wanted: Wanted) -> Recommendation:
    """Choose among the candidates. Among equals, the more accurate one wins, then the first in the order of tables."""
    missed = [missing(one, wanted) for one in found.items]
    left = [at for at, why in enumerate(missed) if not why]
    left_out = Counter(why for why in missed if why)
    if not left:
        return Recommendation(None, None, None, None, None, left_out)
    timed = [at for at in left if wanted.speed in found.items[at].speeds]
    best = min(left, key=lambda at: worse(found, at))
    smallest = min(left, key=lambda at: (size(found.items[at]), worse(found, at)))
    fastest = max(timed, key=lambda at: (found.items[at].speeds[wanted.speed], -worse(found, at)), default=None)
    as_good = [best, *(tie.at for tie in found.ties(best, left) or ())]
    use = min(as_good, key=lambda at: (size(found.items[at]), worse(found, at)))
    return Recommendation(use, smallest, fastest, best, found.ties(use, left), left_out)


def missing(one: Candidate, wanted: Wanted) -> str:
    """The first limit that a candidate misses. Empty if it misses none."""
    if wanted.max_mb is not None and not one.megabytes <= wanted.max_mb:
        return "max_mb"
    if wanted.max_loss is not None and not one.most <= wanted.max_loss:
        return "max_loss"
    if wanted.min_speed is not None and not one.speeds.get(wanted.speed, math.nan) >= wanted.min_speed:
        return "min_speed" if wanted.speed in one.speeds else "min_speed (not timed)"
    return ""


def worse(found: Candidates, at: int) -> float:
    """A sort key for candidates, the most accurate first."""
    return found.items[at].value * (1 if found.metric.lower else -1)


def size(one: Candidate) -> float:
    """The size of a candidate in megabytes. An unknown size counts as infinite."""
    return math.inf if math.isnan(one.megabytes) else one.megabytes


def megabytes(value: float) -> str:
    """The text of a size in megabytes. Empty if unknown."""
    return "" if math.isnan(value) else f"{value:.1f}"


def sentence(found: Candidates, at: int) -> str:
    """A candidate in words.

    `8-bit dynamic with smoothquant α=0.5: 2.4 times smaller, prompts 1.56 times as fast, perplexity +0.185 [0.112, 0.255].`
    """
    one = found.items[at]
    return f"{in_words(one.bits)} with {one.name}: {', '.join(facts(found, at))}."


def facts(found: Candidates, at: int) -> list[str]:
    """Size, speeds and loss of a candidate, each in a few words."""
    one, told = found.items[at], []
    ratio = found.float_megabytes / one.megabytes
    if not math.isnan(ratio):
        told.append(f"{ratio:.1f} times smaller")
    told += [f"{WORKLOADS[name]} {value:.2f} times as fast" for name, value in one.speeds.items() if name in WORKLOADS]
    return [*told, loss(found, at)]


def loss(found: Candidates, at: int) -> str:
    """The loss of a candidate against the float model, in words."""
    one, metric = found.items[at], found.metric
    if not one.change:
        return f"{metric.name} {number(one.value, metric)}{metric.unit and ' ' + metric.unit}, not compared with the float model"
    if one.clear is False:
        seen = found.examples or "the examples"
        return f"no change that {seen} could show ({metric.name} {one.change}; {one.detectable} would have been found)"
    return f"{metric.name} {one.change}"


def in_words(bits: str) -> str:
    """The name of a scheme in plain words. The user's own names stay as they are.

    >>> in_words("w8a8_dynamic"), in_words("w4a16"), in_words("w4a8"), in_words("mine")
    ('8-bit dynamic', '4-bit weights', '4-bit weights and 8-bit activations', 'mine')
    """
    widths = re.fullmatch(r"w(\d+)a(\d+)(_dynamic)?", bits)
    if widths is None:
        return bits
    weights, activations, dynamic = widths.groups()
    if activations == "16":
        return f"{weights}-bit weights"
    if weights == activations:
        return f"{weights}-bit" + " dynamic" * bool(dynamic)
    return f"{weights}-bit weights and {activations}-bit" + " dynamic" * bool(dynamic) + " activations"


def nearest(found: Candidates, ties: Sequence[Tie]) -> str:
    """A sentence on the tie that needs the fewest examples to separate. Empty if every tie needs too many."""
    within = [tie for tie in ties if tie.needed is not None]
    if not within:
        return ""
    tie = min(within, key=lambda tie: tie.needed or 0)
    other, noun = found.items[tie.at], found.examples.partition(" ")[2] or "examples"
    return f"About {tie.needed:,} {noun} would tell it from {other.bits} with {other.name}."
