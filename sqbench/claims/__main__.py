"""`python -m sqbench.claims`: run the missing points of the claims, judge, and write claims.md and claims.csv."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sqbench.claims import report
from sqbench.claims.judging import Judged, judge
from sqbench.claims.statement import VERDICTS, Claim, load
from sqbench.config import CONF_DIR, register
from sqbench.console.answer import reader
from sqbench.console.overrides import written
from sqbench.console.progress import console, output, place_in_sweep
from sqbench.console.quiet import quiet
from sqbench.errors import UserError, known
from sqbench.records import sweeps
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store
from sqbench.reporting.cautions import cautions
from sqbench.reporting.terminal import print_failures
from sqbench.storage.files import canonical_json, write_text
from sqbench.sweeps import sweep
from sqbench.sweeps.plan import show_plan

log = logging.getLogger("sqbench.claims")  # the module itself is __main__

INDEX = "claims.json"  # overrides of a point -> its id


@dataclass
class ClaimsConfig:
    """The settings of `sqbench.claims`."""

    results_dir: str = "results"
    cache_dir: str | None = None  # as in sqbench.run
    only: list[str] | None = None  # keys of claims; null means all
    files: list[str] = field(default_factory=list)  # YAML files of your own instead of those of conf/claims
    run: bool = True  # false: judge the existing points, compute nothing
    plan: bool = False  # true: print the points and their state, compute nothing
    mirror: str = "none"  # a name in conf/tracker; `tracker` itself is a group of sqbench.run in Hydra


def claims_of(config: ClaimsConfig) -> list[Claim]:
    """The requested claims, sorted by key.

    Raises:
        UserError: a file is not a claim, or a key is unknown.
    """
    paths = [Path(name).expanduser() for name in config.files] or sorted((CONF_DIR / "claims").glob("*.yaml"))
    found = sorted((load(path) for path in paths), key=lambda claim: claim.key)
    for key in config.only or ():
        if key not in {claim.key for claim in found}:
            raise UserError(f"only=[{','.join(config.only or ())}]: {known(key, [claim.key for claim in found])}")
    return [claim for claim in found if config.only is None or claim.key in config.only]


Points = dict[tuple[str, ...], Any]  # overrides -> sqbench.running.point.Point


def identified(claims: Sequence[Claim], config: ClaimsConfig) -> Points:
    """Every point that the claims need, checked before anything runs.

    Points are sorted by model and data, so that shared parts are computed once.
    """
    from sqbench import api

    jobs = dict.fromkeys(words for claim in claims for points in claim.points.values() for words in points)
    common = [written("results_dir", config.results_dir), f"tracker={config.mirror}", f"plan={config.plan}"]
    common += [] if config.cache_dir is None else [written("cache_dir", config.cache_dir)]
    points = {}
    for words in jobs:
        ((_, points[words]),) = sweep.checked([(words, api.compose_config(*words, *common))])

    def shared(words: tuple[str, ...]) -> str:
        identity = points[words].identity
        return canonical_json([identity["model"], identity["data"], identity["eval"], identity["calibration"]])

    return {words: points[words] for words in sorted(points, key=shared)}


def computed(points: Points, config: ClaimsConfig) -> list[Outcome]:
    """Run the points that are not finished, and return the outcomes of all points."""
    from sqbench.running.runner import run_point

    store = Store(config.results_dir)
    store.prepare()
    sweeps.begin(store.root / "sweeps" / "claims", [point.id for point in points.values()], store, force=False, now=time.time())
    outcomes = []
    common = set.intersection(*map(set, points)) if points else set()
    for number, (words, point) in enumerate(points.items()):
        place_in_sweep(number, len(points))
        outcome = run_point(point.resolved, list(words), "claims")
        outcomes.append(outcome)
        keys = [word.partition("=")[0] for word in words if word not in common]
        line = f"[{number + 1}/{len(points)}] {outcome.state} {sweep.told(words, keys)}{outcome.summary} ({outcome.seconds:.1f} s)"
        console.print(line, markup=False)
    return outcomes


def judged(config: ClaimsConfig) -> tuple[Judged, list[Outcome]]:
    """Run the points and judge the claims.

    claims.json keeps the id of each point beside the verdicts. Judging then needs neither model nor data.

    Raises:
        UserError: a claim or a point cannot work. Nothing has run then.
    """
    claims, index = claims_of(config), Path(config.results_dir).expanduser() / INDEX
    known_ids = {tuple(shlex.split(words)): name for words, name in _json(index).items()}
    outcomes = []
    if config.run:
        points = identified(claims, config)
        outcomes = computed(points, config)
        known_ids |= {words: point.id for words, point in points.items()}
        write_text(index, json.dumps({shlex.join(words): name for words, name in sorted(known_ids.items())}, indent=1) + "\n")
    store = Store(config.results_dir)
    return [(claim, judge(claim, known_ids, store)) for claim in claims], outcomes


def _json(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


register()
ConfigStore.instance().store(name="claims_schema", node=ClaimsConfig)


def main() -> int:
    """The command line, with verdicts on stdout. The exit status is 1 if a point failed, 2 for an error of the user."""
    quiet()
    status = reader("claims", _answer)
    return sweep.interrupted() if status == sweep.INTERRUPTED else status


def _answer(cfg: DictConfig) -> int:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, ClaimsConfig)
    log.info("loading PyTorch and checking the points of claims %s", ", ".join(claim.key for claim in claims_of(config)))
    if config.plan:
        show_plan(list(identified(claims_of(config), config).values()), config.results_dir)
        return 0
    found, outcomes = judged(config)
    files = report.write(found, Path(config.results_dir).expanduser())
    verdicts = [Claim.verdict([finding.holds for finding in findings]) for _, findings in found]
    for claim, findings in found:
        output.print(
            f"{claim.key:>3}  {report.told(findings):<13} {claim.statement}", markup=False, highlight=False, soft_wrap=True
        )
    output.print(
        ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS), *files, sep="\n", highlight=False, soft_wrap=True
    )
    made = (Store(config.results_dir).read(outcome.point_id, brief=True) for outcome in outcomes)
    for note in cautions(record for record in made if record is not None):
        output.print(note, markup=False, highlight=False, soft_wrap=True)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    print_failures(outcomes, output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
