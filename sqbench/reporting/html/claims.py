"""The verdicts that `sqbench.claims` left in claims.csv."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Evidence:
    """A measurement that a claim rests on, as claims.csv has it."""

    says: str
    holds: str
    effect: str
    needed: str
    test: str
    n: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """A statement and its verdict.

    Attributes:
        evidence: its parts; the effect of the first is the key number of the claim.
    """

    key: str
    statement: str
    verdict: str
    evidence: Sequence[Evidence]
    command: str

    @property
    def held(self) -> str:
        """How many parts of a mixed claim hold; empty of any other."""
        count = sum(one.holds == "supported" for one in self.evidence)
        return f"{count} of {len(self.evidence)} parts hold" if self.verdict == "mixed" else ""


def claims(folder: Path) -> list[Claim]:
    """The claims of a results folder; none if there is no claims.csv of our columns."""
    try:
        rows = pd.read_csv(folder / "claims.csv", dtype=str, keep_default_na=False)
        return [_claim(str(key), group) for key, group in rows.groupby("claim", sort=False)]
    except (OSError, ValueError, KeyError, AttributeError):
        return []


def _claim(key: str, rows: pd.DataFrame) -> Claim:
    evidence = [
        Evidence(row.evidence, row.holds, row.effect, row.needed, row.test, row.n, tuple(row.points.split()))
        for row in rows.itertuples(index=False)
    ]
    first = rows.iloc[0]
    return Claim(key, first["statement"], first["verdict"], evidence, first["command"])
