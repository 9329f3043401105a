"""The origin of each number: command, code, fingerprints, cost and error of every point, and their machines."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqbench.records.fields import point_fields
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting.html.results import Results
from sqbench.reporting.html.texts import Pair, texts
from sqbench.reporting.noise import noise_facts
from sqbench.reporting.units import change_text, number
from sqbench.storage.files import digest

_NONE = float("nan")


@dataclass(frozen=True)
class Machine:
    """Versions and hardware that some points share."""

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Made:
    """A point in full.

    Attributes:
        metrics: name, value and change against the float model.
        stages: name and seconds.
        machine: name of its `Machine`.
        texts: its generated texts beside those of the float model.
        identity: everything that can change its numbers, as JSON.
    """

    point: str
    title: str
    failed: bool
    error: str
    traceback: str
    metrics: tuple[tuple[str, str, str], ...]
    stages: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    machine: str
    identity: str
    texts: tuple[Pair, ...]


def made(results: Results) -> tuple[list[Made], list[Machine]]:
    """All points in the order of the comparison table, and the machines in order of appearance."""
    machines: dict[str, Machine] = {}
    store = Store(results.folder)
    points = []
    for name in dict.fromkeys(point for point in results.frame["point_id"] if point):
        record = results.records[name]
        facts = _machine(record.provenance)
        machine = machines.setdefault(digest(facts), Machine(f"machine {len(machines) + 1}", facts))
        points.append(_made(record, machine.name, texts(store, record)))
    return points, list(machines.values())


def _made(record: Record, machine: str, written: tuple[Pair, ...]) -> Made:
    fields, error = point_fields(record), record.error or {}
    alpha = f" α={fields['alpha']}" if fields["alpha"] else ""
    return Made(
        point=record.point_id,
        title=f"{fields['method']} {fields['bits']}{alpha} · {fields['model']} · {fields['data']}",
        failed=not record.finished,
        error="" if record.finished else record.reason,
        traceback=str(error.get("traceback", "")),
        metrics=tuple(_metrics(record)),
        stages=tuple((stage, f"{seconds:.3g} s") for stage, seconds in record.cost.get("seconds", {}).items()),
        facts=tuple(_facts(record, fields)),
        command=str(record.provenance.get("command", "")),
        machine=machine,
        identity=json.dumps(record.identity, indent=1, ensure_ascii=False),
        texts=written,
    )


def _metrics(record: Record) -> Iterable[tuple[str, str, str]]:
    for name, value in record.metrics.items():
        if not isinstance(value, int | float):
            continue
        delta, metric = record.delta.get(name) or {}, record.metric(name)
        low, high = (_NONE if delta.get(end) is None else delta[end] for end in ("low", "high"))
        change = change_text(delta["value"], low, high, metric) if delta else ""
        yield name, f"{number(value, metric)} {metric.unit}".strip(), change


def _facts(record: Record, fields: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    origin = record.provenance
    git = origin.get("git")
    yield "weights", str(fields["weights"])
    yield "activations", str(fields["activations"])
    yield "schema", str(record.schema)
    yield "computed", str(origin.get("time", "unknown"))
    yield "sweep", str(origin.get("sweep") or "a single run")
    yield "code", "no git checkout" if not git else str(git) if isinstance(git, str) else _commit(git)
    yield from noise_facts(record)
    if peak := record.cost.get("peak_rss_bytes"):
        yield "peak memory", f"{peak / 1e9:.2f} GB"
    for name, value in (origin.get("fingerprints") or {}).items():
        yield f"fingerprint: {name}", value if isinstance(value, str) else json.dumps(value)


def _commit(git: dict[str, Any]) -> str:
    return f"{git.get('commit', '?')}{', with changes that are not committed' if git.get('dirty') else ''}"


def _machine(origin: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    parts = {**(origin.get("hardware") or {}), **(origin.get("versions") or {})}
    return tuple((name, str(value)) for name, value in parts.items() if value is not None)
