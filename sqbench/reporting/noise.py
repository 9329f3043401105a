"""Rounding noise in tables and pages: how far a point moves if the last digits of the model's input change."""

from collections.abc import Iterable, Sequence

from sqbench.comparison import Metric
from sqbench.records.record import Record
from sqbench.reporting.units import number
from sqbench.storage.files import canonical_json


def noise_notes(records: Iterable[Record], metric: Metric) -> list[str]:
    """One sentence without its full stop: the largest noise per bit-width. Empty if no point was evaluated with noise.

    Args:
        records: records of the points of a table.
    """
    told = [record for record in records if metric.name in record.noise.get("metrics", {})]
    if not told:
        return []
    widths: dict[str, float] = {}
    for record in told:
        width, std = record.identity["scheme"]["name"], record.noise["metrics"][metric.name]["std"]
        widths[width] = max(std, widths.get(width, 0.0))
    widths.pop("fp", None)
    base = max(record.noise["baseline"][metric.name]["std"] for record in told if metric.name in record.noise["baseline"])
    relative, runs = ({record.noise[name] for record in told} for name in ("relative", "runs"))
    moves = [f"by {_size(std, metric)} at {width}" for width, std in widths.items()] + [f"by {_size(base, metric)} in float"]
    counts = " or ".join(str(count) for count in sorted(runs))
    share = f"{max(relative):g}".replace("e-0", "e-")
    change = f"a change of {share} in what the model reads moves {metric.name} {', '.join(moves)}"
    return [f"Rounding noise: {change} (standard deviation over {counts} runs)"]


def noise_facts(record: Record) -> list[tuple[str, str]]:
    """The noise on the page of a point: by metric, its spread and its range."""
    noise = record.noise
    if not noise:
        return []
    found = {name: spread for name, spread in noise["metrics"].items() if name in noise["delta"] and spread["std"] > 0}
    shown = [(record.metric(name), spread) for name, spread in found.items()]
    texts = [
        f"{metric.name} {_size(spread['std'], metric)} ({number(spread['min'], metric, extra=2)} to"
        f" {number(spread['max'], metric, extra=2)}; of its change {_size(noise['delta'][metric.name]['std'], metric)})"
        for metric, spread in shown
    ]
    return [(f"rounding noise, {noise['runs']} runs", ", ".join(texts) or "none")]


def told_most(records: Sequence[Record]) -> list[Record]:
    """Each point once. Points that differ only in noise runs have the same numbers. The one with the most runs is kept."""
    found: dict[str, Record] = {}
    for record in records:
        key = canonical_json({name: value for name, value in record.identity.items() if name != "noise"})
        if key not in found or _rank(record) > _rank(found[key]):
            found[key] = record
    kept = {record.point_id for record in found.values()}
    return [record for record in records if record.point_id in kept]


def _rank(record: Record) -> tuple[bool, int]:
    return record.finished, record.identity.get("noise", 0)


def _size(std: float, metric: Metric) -> str:
    return f"{std / metric.scale:.2g} {metric.unit}".strip()
