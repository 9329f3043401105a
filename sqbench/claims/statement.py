"""A claim as its YAML says it: the statement, the points it needs, and for each piece of evidence where its interval has to lie."""

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
    """Where an effect has to lie: `> 10 %`, `< 0.5`, `within 1 %` (of 0).

    Attributes:
        text: as written.
        low, high: the open interval, in the effect's own unit.
        unit: how the effect is shown: `%` of the other side and percentage `points` are hundredths.
    """

    text: str
    low: float
    high: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Region":
        """Raises ValueError for anything that is no region."""
        if not (found := _REGION.fullmatch(text.strip())):
            raise ValueError(f"is: {text}: must be like `> 10 %`, `< 0.5 points` or `within 1 %`; units: % points x dB s")
        unit, bound = found["unit"].strip(), float(found["bound"])
        bound /= 100 if unit in _IN_HUNDREDTHS else 1
        if found["sign"] == "within":
            return cls(text, -abs(bound), abs(bound), unit)
        ends = (bound, float("inf")) if found["sign"] == ">" else (-float("inf"), bound)
        return cls(text, *ends, unit)

    def judge(self, effect: Effect) -> str:
        """Supported if the whole interval of an effect lies inside, refuted if all of it lies outside."""
        if self.low < effect.low and effect.high < self.high:
            return SUPPORTED
        return REFUTED if effect.high <= self.low or effect.low >= self.high else INCONCLUSIVE

    def show(self, effect: Effect) -> str:
        """`+3.1 % [2.0, 4.2]`."""
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
        says: what it would mean, in words.
        measure: a key of `MEASURES`.
        of, against: labels of points; without `against`, the float model or the number itself, as the measure has it.
        region: where its interval has to lie.
        options: of the measure.
    """

    says: str
    measure: str
    of: str
    region: Region
    against: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement and what decides it.

    It is supported if all of its evidence is, mixed if some is supported and some refuted, refuted if some is refuted and none is
    supported, and inconclusive otherwise.

    Attributes:
        key: a letter or short name.
        source: who says so.
        points: label -> the overrides of each of its points: more than one if its seeds are averaged.
        evidence: its parts; the effect of the first is the key number of the claim.
        not_tested: what the verdict does not cover.
    """

    key: str
    statement: str
    source: str
    points: Mapping[str, tuple[tuple[str, ...], ...]]
    evidence: tuple[Evidence, ...]
    not_tested: str = ""

    @staticmethod
    def verdict(verdicts: list[str]) -> str:
        """Of a claim, from those of its evidence."""
        if REFUTED in verdicts:
            return MIXED if SUPPORTED in verdicts else REFUTED
        return SUPPORTED if set(verdicts) == {SUPPORTED} else INCONCLUSIVE


def load(path: Path) -> Claim:
    """Read a claim.

    Raises:
        UserError: the file is no claim; names the file, the key and what would work.
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
    """A field that has to be there and not empty, taken out."""
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
