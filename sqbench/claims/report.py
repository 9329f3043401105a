"""Verdicts as `claims.md` and `claims.csv`: statement, evidence, effect with interval, verdict, command."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sqbench.claims.judging import Finding, Judged
from sqbench.claims.statement import MIXED, SUPPORTED, Claim
from sqbench.console.overrides import quoted
from sqbench.reporting.tables import markdown_table
from sqbench.storage.files import write_text

COLUMNS = (
    *("claim", "statement", "verdict", "evidence", "holds", "effect", "value", "low", "high", "seed_std", "n"),
    *("needed", "test", "points", "command"),
)


def command(claim: Claim) -> str:
    """The command that tests a claim again."""
    return f"python -m sqbench.claims only={shlex.quote(f'[{quoted(claim.key)}]')}"


def frame(judged: Judged) -> pd.DataFrame:
    """One row per piece of evidence, with `COLUMNS`."""
    rows = []
    for claim, findings in judged:
        verdict = Claim.verdict([finding.holds for finding in findings])
        for finding in findings:
            effect, evidence = finding.effect, finding.evidence
            numbers = [None] * 5 if effect is None else [effect.value, effect.low, effect.high, effect.spread, effect.n]
            told = [claim.key, claim.statement, verdict, evidence.says, finding.holds, finding.shown]
            test = finding.reason if effect is None else effect.how
            rows.append([*told, *numbers, evidence.region.text, test, " ".join(finding.points), command(claim)])
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})


INTRODUCTION = """\
A piece of evidence is supported if its whole 95 % interval lies where the statement needs it, refuted if all of it lies elsewhere,
and inconclusive otherwise. A claim is supported if all of its evidence is, mixed if some is supported and some refuted, refuted if
some is refuted and none is supported, and inconclusive otherwise. The key number of a claim is the effect of its first piece of
evidence. Intervals are of each piece alone, not corrected for their number. Numbers without one are counted, not estimated."""


def markdown(judged: Judged) -> str:
    """A table of verdicts, then every claim with its evidence."""
    lines = [[claim.key, claim.statement, _verdict(findings), _key_number(findings)] for claim, findings in judged]
    parts = ["# Claims, tested", INTRODUCTION, _table(["", "statement", "verdict", "key number"], lines)]
    for claim, findings in judged:
        seeded = any(finding.effect is not None and finding.effect.spread is not None for finding in findings)
        heads = ["evidence", "effect", *["seeds ±"] * seeded, "n", "needed", "", "points"]
        parts += [f"## {claim.key}. {claim.statement}", f"{_verdict(findings)}. Said by: {claim.source}."]
        parts += [_table(heads, [_row(finding, seeded) for finding in findings])]
        parts += [f"Not tested: {claim.not_tested}."] if claim.not_tested else []
        parts += [f"`{command(claim)}`"]
    return "\n\n".join(parts) + "\n"


def told(findings: Sequence[Finding]) -> str:
    """A verdict in words: `supported`, `mixed (3 of 4 parts hold)`."""
    verdict = Claim.verdict([finding.holds for finding in findings])
    held = sum(finding.holds == SUPPORTED for finding in findings)
    return f"{verdict} ({held} of {len(findings)} parts hold)" if verdict == MIXED else verdict


def _verdict(findings: Sequence[Finding]) -> str:
    word, *rest = told(findings).split(" ", 1)
    return " ".join([f"**{word}**", *rest])


def _key_number(findings: Sequence[Finding]) -> str:
    return f"{findings[0].evidence.says}: {findings[0].shown}"


def _row(finding: Finding, seeded: bool) -> list[str]:
    effect, region = finding.effect, finding.evidence.region
    spread = "" if effect is None or effect.spread is None else region.width(effect.spread)
    count = "" if effect is None else str(effect.n)
    told = [finding.evidence.says, finding.shown, *[spread] * seeded, count]
    return [*told, region.text, finding.holds, " ".join(finding.points)]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of texts. Bold marks stay."""
    return markdown_table(head, lines, sides=len(head)).replace(r"\*\*", "**")


def write(judged: Judged, folder: Path) -> list[Path]:
    """Write `claims.csv` and `claims.md`."""
    files = {
        "claims.csv": frame(judged).to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "claims.md": markdown(judged),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]
