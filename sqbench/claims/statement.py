"""A claim from its YAML file: the statement, its points, and the region in which the interval of each evidence must lie."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sqbench.claims.measures import MEASURES, Effect
from sqbench.errors import UserError, known

SUPPORTED, REFUTED, MIXED, INCONCLUSIVE = VERDICTS = ("supported", "refuted", "mixed", "inconclusive")
_REGION = re.compile(r"(?P<sign>[<>]|within) *(?P<bound>-?\d+(\.\d+)?)(?P<unit> *%| points| x| dB| s|)")
_IN_HUNDREDTHS = ("%", "points")


@dataclass(frozen=True)
class Region:
    """The region in which an effect must lie: `> 10 %`, `< 0.5`, `within 1 %` (of 0).

    Attributes:
        text: the region as written.
        low, high: the open interval, in the unit of the effect.
        unit: the shown unit. `%` (of the other side) and `points` (percentage points) are hundredths.
    """

    text: str
    low: float
    high: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Region":
        """The region of a text. Raises ValueError if the text is not a region."""
        if not (found := _REGION.fullmatch(text.strip())):
            raise ValueError(f"is: {text}: must be like `> 10 %`, `< 0.5 points` or `within 1 %`; units: % points x dB s")
        unit, bound = found["unit"].strip(), float(found["bound"])
        bound /= 100 if unit in _IN_HUNDREDTHS else 1
        if found["sign"] == "within":
            return cls(text, -abs(bound), abs(bound), unit)
        ends = (bound, float("inf")) if found["sign"] == ">" else (-float("inf"), bound)
        return cls(text, *ends, unit)

    def judge(self, effect: Effect) -> str:
        """Supported if the interval of an effect lies inside, refuted if it lies outside, else inconclusive."""
        if self.low < effect.low and effect.high < self.high:
            return SUPPORTED
        return REFUTED if effect.high <= self.low or effect.low >= self.high else INCONCLUSIVE

    def show(self, effect: Effect) -> str:
        """An effect with its interval: `+3.1 % [2.0, 4.2]`."""
        unit = f" {self.unit}" if self.unit else ""
        text = f"{format(self._scaled(effect.value), '.3g' if self.unit in ('', 'x', 's') else '+.3g')}{unit}"
        counted = effect.low == effect.high
        return text if counted else f"{text} [{self._scaled(effect.low):.3g}, {self._scaled(effect.high):.3g}]"

    def width(self, spread: float) -> str:
        """A standard deviation in the same unit."""
        return f"{self._scaled(spread):.2g}"

    def _scaled(self, value: float) -> float:
        return 100 * value if self.unit in _IN_HUNDREDTHS else value


@dataclass(frozen=True)
class Evidence:
    """One measurement that a claim rests on.

    Attributes:
        says: its meaning in words.
        measure: a key of `MEASURES`.
        of, against: labels of points. Without `against`, the measure uses the float model or the number itself.
        region: the region in which its interval must lie.
        options: options of the measure.
    """

    says: str
    measure: str
    of: str
    region: Region
    against: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement and the evidence that decides it.

    A claim is supported if all of its evidence is supported. It is mixed if some is supported and some refuted. It is refuted if
    some is refuted and none supported. Otherwise it is inconclusive.

    Attributes:
        key: a letter or short name.
        source: the source of the statement.
        points: label -> the overrides of each of its points. There are several if seeds are averaged.
        evidence: its parts. The effect of the first is the key number of the claim.
        not_tested: limits of the verdict.
    """

    key: str
    statement: str
    source: str
    points: Mapping[str, tuple[tuple[str, ...], ...]]
    evidence: tuple[Evidence, ...]
    not_tested: str = ""

    @staticmethod
    def verdict(verdicts: list[str]) -> str:
        """The verdict of a claim, from the verdicts of its evidence."""
        if REFUTED in verdicts:
            return MIXED if SUPPORTED in verdicts else REFUTED
        return SUPPORTED if set(verdicts) == {SUPPORTED} else INCONCLUSIVE


def load(path: Path) -> Claim:
    """Read a claim.

    Raises:
        UserError: the file is not a claim. The message names the file, the key and the allowed values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _claim(path.stem, content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def _claim(stem: str, content: Any) -> Claim:
    if not isinstance(content, dict):
        raise ValueError("a claim is a mapping with statement, source, points and evidence")
    fields = dict(content)
    common = shlex.split(str(fields.pop("common", "")))
    seeds = fields.pop("seeds", [0])
    points = {}
    for label, overrides in _taken(fields, "points", dict).items():
        words = (*common, *shlex.split(str(overrides)))
        points[label] = tuple((*words, f"seed={seed}") for seed in seeds) if _drawn(words, seeds) else (words,)
    evidence = tuple(_evidence(one, points) for one in _taken(fields, "evidence", list))
    claim = Claim(
        key=str(fields.pop("key", stem)),
        statement=_taken(fields, "statement", str).strip(),
        source=_taken(fields, "source", str).strip(),
        points=points,
        evidence=evidence,
        not_tested=str(fields.pop("not_tested", "")).strip(),
    )
    if fields:
        names = ("key", "statement", "source", "common", "seeds", "points", "evidence", "not_tested")
        raise ValueError(f"{next(iter(fields))}: {known(str(next(iter(fields))), names)}")
    return claim


def _drawn(words: tuple[str, ...], seeds: list[int]) -> bool:
    return seeds != [0] and not any(word.startswith("seed=") for word in words)


def _taken(fields: dict[str, Any], key: str, kind: type) -> Any:
    """Remove and return a field, which must be present and not empty."""
    value = fields.pop(key, None)
    if not isinstance(value, kind) or not value:
        raise ValueError(f"{key}: needs a value of its own, a {kind.__name__}")
    return value


def _evidence(one: Any, points: Mapping[str, Any]) -> Evidence:
    if not isinstance(one, dict):
        raise ValueError(f"evidence: {one}: each is a mapping with says, measure, of and is")
    options = dict(one)
    says, measure, of = (_taken(options, key, str) for key in ("says", "measure", "of"))
    region = Region.parse(str(_taken(options, "is", str)))
    against = options.pop("against", None)
    if measure not in MEASURES:
        raise ValueError(f"measure: {measure}: {known(measure, MEASURES)}")
    for label in (of, *([against] if against is not None else [])):
        if label not in points:
            raise ValueError(f"evidence of {label}: {known(label, points)}")
    if unknown := options.keys() - MEASURES[measure].options:
        raise ValueError(f"{measure}.{min(unknown)}: {known(min(unknown), MEASURES[measure].options)}")
    return Evidence(says, measure, of, region, against, options)
