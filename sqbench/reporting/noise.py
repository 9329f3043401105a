"""Rounding noise in tables and pages: how far a point moves if the last digits of the model's input change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqbench.reporting.units import number, unit_of
from sqbench.storage import canonical_json


def noise_notes(records: Iterable[Mapping[str, Any]], metric: str) -> list[str]:
    """One sentence without its full stop: the largest noise per bit-width. Empty if no point was evaluated with noise.

    Args:
        records: records of the points of a table.
    """
    told = [record for record in records if metric in record.get("noise", {}).get("metrics", {})]
    if not told:
        return []
    widths: dict[str, float] = {}
    for record in told:
        width, std = record["identity"]["scheme"]["name"], record["noise"]["metrics"][metric]["std"]
        widths[width] = max(std, widths.get(width, 0.0))
    widths.pop("fp", None)
    base = max(record["noise"]["baseline"][metric]["std"] for record in told if metric in record["noise"]["baseline"])
    relative, runs = ({record["noise"][name] for record in told} for name in ("relative", "runs"))
    moves = [f"by {_size(std, metric)} at {width}" for width, std in widths.items()] + [f"by {_size(base, metric)} in float"]
    counts = " or ".join(str(count) for count in sorted(runs))
    share = f"{max(relative):g}".replace("e-0", "e-")
    change = f"a change of {share} in what the model reads moves {metric} {', '.join(moves)}"
    return [f"Rounding noise: {change} (standard deviation over {counts} runs)"]


def noise_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The noise on the page of a point: by metric, its spread and its range."""
    noise = record.get("noise")
    if not noise:
        return []
    shown = {metric: spread for metric, spread in noise["metrics"].items() if metric in noise["delta"] and spread["std"] > 0}
    texts = [
        f"{metric} {_size(spread['std'], metric)} ({number(spread['min'], metric, extra=2)} to"
        f" {number(spread['max'], metric, extra=2)}; of its change {_size(noise['delta'][metric]['std'], metric)})"
        for metric, spread in shown.items()
    ]
    return [(f"rounding noise, {noise['runs']} runs", ", ".join(texts) or "none")]


def told_most(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each point once. Points that differ only in noise runs have the same numbers. The one with the most runs is kept."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        key = canonical_json({name: value for name, value in record["identity"].items() if name != "noise"})
        if key not in found or _rank(record) > _rank(found[key]):
            found[key] = record
    kept = {record["point_id"] for record in found.values()}
    return [record for record in records if record["point_id"] in kept]


def _rank(record: Mapping[str, Any]) -> tuple[bool, int]:
    return record["status"] == "ok", record["identity"].get("noise", 0)


def _size(std: float, metric: str) -> str:
    scale, unit = unit_of(metric)
    return f"{std / scale:.2g} {unit}".strip()
