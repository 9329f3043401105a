"""`python -m sqbench.points`: list, show, compare, explain, renew and remove the points of a results folder."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.collect import chosen, every, records_of
from sqbench.console.answer import answered
from sqbench.console.overrides import put, read
from sqbench.console.progress import console, output
from sqbench.console.quiet import quiet
from sqbench.errors import UserError, known
from sqbench.records.changes import changes
from sqbench.records.fields import FILTERS
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.records.upkeep import KINDS, remains
from sqbench.reporting.frame import results_frame
from sqbench.reporting.listing import changes_table, diff_table, points_table

USAGE = f"""python -m sqbench.points [VERB] [results_dir=FOLDER ...]

  list [where.KEY=...]   every point, one a line; for example where.status=failed
  show ID                one point: its versions, its error, and the line that makes it again today
  diff ID ID             what two points differ in, and their metrics
  why ID                 whether the point's configuration would still give this record, and if not, what has changed
  intervals              make all intervals again from the samples of the points, as this version makes them; nothing is run
  clean KIND ...         remove {", ".join(KINDS)}: shows what, and asks; yes=true does not ask

An ID may be cut short as long as it names one point.
"""


@dataclass
class PointsConfig:
    """The settings of `sqbench.points`."""

    results_dir: str = "results"
    where: dict[str, Any] = field(default_factory=every)
    yes: bool = False  # clean: remove without asking


def listed(config: PointsConfig, names: Sequence[str]) -> None:
    """Print every point that the filters leave."""
    _expect(names, 0, "list")
    from sqbench.running.identity import outdated

    records = {record.point_id: record for record in records_of(config.results_dir, "points")}
    frame = chosen(results_frame(records.values()), config.where)
    output.print(points_table(frame, records, outdated))


def shown(config: PointsConfig, names: Sequence[str]) -> None:
    """Print one point as YAML, without its layers and examples, and the command that makes it again today."""
    _expect(names, 1, "show")
    from sqbench.records.again import again

    record = found(config, names[0])
    parts = ("point_id", "status", "error", "metrics", "delta", "cost", "identity", "provenance")
    _say(OmegaConf.to_yaml(OmegaConf.create({name: getattr(record, name) for name in parts})).rstrip())
    if line := again(record):
        _say(f"again: {line}")


def diff(config: PointsConfig, names: Sequence[str]) -> None:
    """Print two points side by side."""
    _expect(names, 2, "diff")
    output.print(diff_table(*(found(config, name) for name in names)))


def why(config: PointsConfig, names: Sequence[str]) -> None:
    """Print whether a configuration still gives its point. Weights, data, defaults and code may have changed since."""
    _expect(names, 1, "why")
    from sqbench.running.point import identify
    from sqbench.running.resolved import restored

    record = found(config, names[0])
    try:
        today = identify(restored(record.config))
    except (UserError, OmegaConfBaseException) as error:
        _say(f"{record.point_id}: its configuration no longer works: {str(error).splitlines()[0]}")
        return
    if today.id == record.point_id:
        _say(f"{record.point_id}: as its configuration gives it today; running it again would skip it")
        return
    _say(f"{record.point_id}: its configuration gives {today.id} today, because of")
    output.print(changes_table(changes(record.identity, today.identity)))


def intervals(config: PointsConfig, names: Sequence[str]) -> None:
    """Make the intervals of all finished points again, from their samples."""
    _expect(names, 0, "intervals")
    from sqbench.records.renewal import renewed

    store = Store(folder_of(config))
    finished = [record.point_id for record in store.records(brief=True) if record.finished]
    changed, without = 0, []
    for point_id in finished:
        record, samples = store.read(point_id), store.samples(point_id)
        if record is None or samples is None:
            without.append(point_id)
            continue
        again = renewed(record, samples)
        if again.delta != record.delta:
            store.write(again)
            changed += 1
    _say(f"{changed} of {len(finished)} points have other intervals now")
    if without:
        raise UserError(f"intervals: {len(without)} points have no samples and keep their intervals: {', '.join(without)}")


def clean(config: PointsConfig, names: Sequence[str]) -> None:
    """Remove useless files, after showing them and asking."""
    if not names:
        raise UserError(f"clean: must be followed by at least one of {', '.join(KINDS)}")
    from sqbench.running.identity import outdated

    store = Store(folder_of(config))
    going = remains(store, names, outdated)
    for one in going:
        _say(f"{one.kind:<10} {one.path.relative_to(store.root)}  {one.size() / 1e6:.1f} MB  {one.why}")
    if not going:
        _say(f"nothing in {store.root} is {' or '.join(names)}")
    elif config.yes or _agreed(f"remove {len(going)}? [y/N] "):
        for one in going:
            one.remove()
        _say(f"{len(going)} removed")


VERBS = {"list": listed, "show": shown, "diff": diff, "why": why, "intervals": intervals, "clean": clean}


def found(config: PointsConfig, name: str) -> Record:
    """The record whose id begins with `name`.

    Raises:
        UserError: there is none, or several.
    """
    records = {record.point_id: record for record in records_of(config.results_dir, "points")}
    matches = [point_id for point_id in records if point_id.startswith(name)]
    if len(matches) != 1:
        raise UserError(
            f"{name}: {len(matches)} points begin so ({', '.join(matches)})" if matches else f"{name}: {known(name, records)}"
        )
    return records[matches[0]]


def folder_of(config: PointsConfig) -> Path:
    """The results folder, which must exist."""
    folder = Path(config.results_dir).expanduser()
    if not (folder / "runs").is_dir():
        raise UserError(f"results_dir={config.results_dir}: no runs/ in it (from {Path.cwd()})")
    return folder


def _expect(names: Sequence[str], count: int, verb: str) -> None:
    if len(names) != count:
        line = shlex.join(["python", "-m", "sqbench.points", verb, *["ID"] * count])
        raise UserError(f"{verb} {' '.join(names)}: takes {count} point ids, as in `{line}`")


def _agreed(question: str) -> bool:
    """Whether the user agrees. Without a terminal it is an error, because nothing would be removed."""
    if not sys.stdin.isatty():
        raise UserError("clean: nobody to ask; yes=true removes without asking")
    return console.input(question).strip().lower() in ("y", "yes")


def _say(text: str) -> None:
    output.print(text, markup=False, highlight=False, soft_wrap=True)


def parsed(arguments: Sequence[str]) -> tuple[str, list[str], PointsConfig]:
    """Verb, names and settings of a command line.

    Raises:
        UserError: an unknown verb.
    """
    names = [item for item in arguments if "=" not in item]
    verb = names.pop(0) if names else "list"
    if verb not in VERBS:
        raise UserError(f"{verb}: {known(verb, VERBS)}; `python -m sqbench.points --help` explains them")
    schema = OmegaConf.structured(PointsConfig)
    put(schema, read([item for item in arguments if "=" in item]))
    config = OmegaConf.to_object(schema)
    assert isinstance(config, PointsConfig)
    return verb, names, config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Answers go to stdout, errors that the user can fix to stderr, with exit status 2."""
    quiet()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE + f"\nkeys of where: {' '.join(FILTERS)}\n")
        return 0
    return answered(lambda: _answer(given))


def _answer(given: Sequence[str]) -> None:
    verb, names, config = parsed(given)
    VERBS[verb](config, names)


if __name__ == "__main__":
    sys.exit(main())
