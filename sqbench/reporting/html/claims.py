"""The verdicts that `sqbench.claims` wrote to claims.csv."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Evidence:
    """One measurement behind a claim, as in claims.csv."""

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
        evidence: its parts. The effect of the first is the key number of the claim.
    """

    key: str
    statement: str
    verdict: str
    evidence: Sequence[Evidence]
    command: str

    @property
    def held(self) -> str:
        """The number of parts of a mixed claim that hold, in words. Empty for other claims."""
        count = sum(one.holds == "supported" for one in self.evidence)
        return f"{count} of {len(self.evidence)} parts hold" if self.verdict == "mixed" else ""


def claims(folder: Path) -> list[Claim]:
    """The claims of a results folder. Empty if it has no claims.csv with the expected columns."""
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
