"""Findings on each piece of a claim's evidence, from finished points."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqbench.claims.measures import MEASURES, Effect, Side
from sqbench.claims.statement import INCONCLUSIVE, Claim, Evidence
from sqbench.errors import UserError
from sqbench.records.store import Store

Ids = Mapping[tuple[str, ...], str]  # overrides -> point id


@dataclass(frozen=True)
class Finding:
    """The finding on one piece of evidence.

    Attributes:
        effect: the measured effect. None if it could not be measured.
        holds: supported, refuted or inconclusive.
        points: ids of the records behind it.
        reason: why there is no effect.
    """

    evidence: Evidence
    effect: Effect | None
    holds: str
    points: tuple[str, ...]
    reason: str = ""

    @property
    def shown(self) -> str:
        """The effect as text, or the reason why there is none."""
        return f"not measured: {self.reason}" if self.effect is None else self.evidence.region.show(self.effect)


Judged = Sequence[tuple[Claim, Sequence[Finding]]]


def judge(claim: Claim, ids: Ids, store: Store) -> list[Finding]:
    """A finding for every piece of a claim's evidence."""
    return [_finding(claim, evidence, ids, store) for evidence in claim.evidence]


def _finding(claim: Claim, evidence: Evidence, ids: Ids, store: Store) -> Finding:
    labels = [label for label in (evidence.of, evidence.against) if label is not None]
    named = tuple(dict.fromkeys(ids[words] for label in labels for words in claim.points[label] if words in ids))
    try:
        sides = {label: _side(claim.points[label], ids, store) for label in labels}
        other = None if evidence.against is None else sides[evidence.against]
        effect = MEASURES[evidence.measure].run(sides[evidence.of], other, **evidence.options)
    except UserError as error:
        return Finding(evidence, None, INCONCLUSIVE, named, str(error))
    return Finding(evidence, effect, evidence.region.judge(effect), named)


def _side(points: Iterable[tuple[str, ...]], ids: Ids, store: Store) -> Side:
    records, samples = [], []
    for words in points:
        record = store.read(ids[words]) if words in ids else None
        if record is None or not record.finished:
            why = "was not run" if record is None else f"failed: {(record.error or {})['message']}"
            raise UserError(f"point {' '.join(words)} {why}")
        table = store.samples(record.point_id)
        if table is None:
            raise UserError(f"point {' '.join(words)} has no whole samples.parquet any more: running it with force=true makes one")
        records.append(record)
        samples.append(table)
    return Side(records, samples)
