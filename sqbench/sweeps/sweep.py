"""The steps of a sweep around its points: it checks all of them first, runs equal ones once, and reports at the end."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from sqbench.console.overrides import pasted, quoted
from sqbench.console.progress import console, output
from sqbench.errors import UserError
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store

if TYPE_CHECKING:
    from sqbench.running.point import Point

log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit status
GONE = "its record was there and is gone: somebody deletes results while they are made"
TOTAL = "SQBENCH_SWEEP_POINTS"  # environment variable: the number of points of the sweep, for the points in any process
KEYS = "SQBENCH_SWEEP_KEYS"  # the same for the keys that vary, separated by commas


def task_config(cfg: DictConfig) -> DictConfig:
    """A composed configuration without Hydra's own node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def own_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides that compute one point of a sweep alone."""
    kept = [item for item in overrides if not item.startswith(("plan=", "force=", "hydra.sweeper", "hydra/sweeper", "hydra.mode"))]
    return kept + ["hydra.mode=RUN"] * any(item.lstrip("+").startswith("experiment=") for item in kept)


def told(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """The varying keys of a point for a progress line, without those in its name (method, bits, alpha, layers)."""
    named = ("method", "bits", "alpha", "layers")
    return "".join(f"{item} " for item in overrides if (key := item.lstrip("+").partition("=")[0]) in keys and key not in named)


def announce(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Log what will be loaded, before the imports that take seconds."""
    if "torch" in sys.modules:
        return
    given = dict(item.lstrip("+").split("=", 1) for item in overrides if "=" in item)
    names = []
    for group in ("model", "data"):
        own = None if OmegaConf.is_missing(cfg, group) or OmegaConf.is_missing(cfg[group], "name") else cfg[group].name
        names.append(f"{group}={given.get(f'{group}.name') or given.get(group) or own}")
    log.info("loading PyTorch, then %s", " ".join(names))


def checked(jobs: Sequence[tuple[Sequence[str], DictConfig]]) -> list[tuple[Sequence[str], "Point"]]:
    """Check every job of a sweep, and return its points with the overrides of each.

    Raises:
        UserError: a job cannot work. No job has started then.
    """
    from sqbench.running.checks import check
    from sqbench.running.point import identify
    from sqbench.running.resolved import resolve

    for key in ("results_dir", "plan", "force"):
        values = sorted({str(cfg[key]) for _, cfg in jobs})
        if len(values) > 1:
            raise UserError(f"{key}={','.join(values)}: one sweep has one value of it")
    points = []
    for overrides, cfg in jobs:
        try:
            for own, one in by_group(overrides, cfg):
                resolved = resolve(one)
                check(resolved)
                points.append((own, identify(resolved)))
        except UserError as error:
            raise UserError(f"{error}  [{' '.join(overrides)}]" if len(jobs) > 1 else str(error)) from error
    return points


def distinct(points: Sequence[tuple[Sequence[str], "Point"]]) -> list[tuple[Sequence[str], "Point"]]:
    """The points without repetitions: the first of equal ones."""
    first: dict[str, tuple[Sequence[str], Point]] = {}
    for overrides, point in points:
        first.setdefault(point.id, (overrides, point))
    if len(first) < len(points):
        log.info("%d combinations are %d points: equal ones run once (methods without alpha have none)", len(points), len(first))
    return list(first.values())


def by_group(overrides: Sequence[str], cfg: DictConfig) -> list[tuple[Sequence[str], DictConfig]]:
    """The jobs of a job: one for each group of sibling layers with `layers=each`, which loads the model; else the job itself.

    Raises:
        UserError: the job cannot work for any choice of layers.
    """
    from sqbench.config import EACH
    from sqbench.running.checks import check
    from sqbench.running.point import identify
    from sqbench.running.resolved import resolve
    from sqbench.running.stages import groups_of

    if cfg.layers != EACH:
        return [(overrides, cfg)]
    whole = _with_layers(cfg, None)
    resolved = resolve(whole)
    check(resolved)
    log.info("layers=%s: loading %s to see its groups of layers", EACH, cfg.model.name)
    point = identify(resolved)
    if point.first:
        log.info("layers=%s: %s; it is one line of the plan until then", EACH, point.first)
        return [(overrides, whole)]
    groups = groups_of(point)
    log.info("layers=%s: %d groups, from %s to %s", EACH, len(groups), groups[0][0], groups[-1][0])
    kept = [item for item in overrides if not item.startswith("layers=")]
    return [([*kept, f"layers=[{','.join(map(quoted, group))}]"], _with_layers(cfg, list(group))) for group in groups]


def _with_layers(cfg: DictConfig, layers: list[str] | None) -> DictConfig:
    other = cfg.copy()
    other.layers = layers
    return other


def finished(
    points: Sequence[tuple[Sequence[str], "Point"]], results_dir: str | Path, before: Mapping[str, int | None]
) -> list[Outcome]:
    """Outcomes of the points that have a record, for an interrupted sweep.

    Args:
        before: for every launched point, when the record that it had before its launch was written; None if it had none.
    """
    store = Store(results_dir)
    outcomes = []
    for overrides, point in points:
        if store.finished(point.id):
            state = "skipped" if store.written(point.id) == before.get(point.id, store.written(point.id)) else "done"
            outcomes.append(Outcome(point.id, state, list(overrides)))
    return outcomes


def report(outcomes: Sequence[Outcome], results_dir: str | Path) -> int:
    """Print the comparison table and the failures of a sweep. Return the exit status: 0 if no point failed, else 1."""
    from sqbench.reporting.cautions import cautions
    from sqbench.reporting.shares import share_notes
    from sqbench.reporting.terminal import print_failures, sweep_table

    store = Store(results_dir)
    found = {outcome.point_id: store.read(outcome.point_id, brief=True) for outcome in outcomes}
    outcomes = [
        replace(outcome, state="failed", error=GONE, summary=f"{outcome.summary}: {GONE}")
        if outcome.state in ("done", "skipped") and found[outcome.point_id] is None
        else outcome
        for outcome in outcomes
    ]
    if records := [record for record in found.values() if record is not None]:
        skipped = {outcome.point_id for outcome in outcomes if outcome.state == "skipped"}
        output.print(sweep_table(records, skipped, samples=store.samples))
        for note in (*share_notes(records), *cautions(records)):
            output.print(note, markup=False, highlight=False, soft_wrap=True)
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("done", "skipped", "failed", "busy")}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no point finished"
    line = f"{said} · records in {store.runs} · tables: python -m sqbench.collect {pasted('results_dir', store.root)}"
    output.print(line, markup=False, highlight=False, soft_wrap=True)
    print_failures(outcomes, output)
    return 1 if counts["failed"] else 0


def interrupted() -> int:
    """Print that nothing is lost, and return the exit status 130."""
    console.print("interrupted: what is finished is kept, the same command goes on from here", style="yellow")
    return INTERRUPTED
