"""What points will take, learnt from what finished points took: seconds by stage, and memory.

A stage's seconds are a rate times its work: `evaluate` works through the evaluation data, `calibrate` through the calibration data,
each with the whole model; the others once with the model. Rates come from the finished points that are most like the point: of the
same model, method, bits, evaluation and device if there are any, else of fewer of these, at last of other models, scaled by size.
What they do not tell is worked out (`sqbench.effort`), at the speed at which they ran: the search of a method that has no finished
point, or everything where no point has finished. Calibration and the float result are paid by the first point that needs them;
others find them.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Any

import psutil

from sqbench.effort import estimate
from sqbench.storage import canonical_json, digest

if TYPE_CHECKING:
    from sqbench.runner import Point

Record = Mapping[str, Any]

ENOUGH = 64  # finished points of one kind that are learnt from, the last in the order of their names
SHARED = ("baseline", "calibrate")  # stages whose result is kept for every other point
METHODS_OWN = ("quantize", "train")  # stages in which a method does what no other does


@dataclass(frozen=True)
class Cost:
    """Of one point.

    Attributes:
        seconds: of its own stages.
        load: seconds that a process spends before its first point.
        shared: what is computed once -> its seconds.
        memory: peak bytes; None where nothing is known.
        basis: what tells.
    """

    seconds: float
    load: float = 0.0
    shared: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    basis: str = ""


class History:
    """Finished points, found by what they have in common with another one."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Of the records of a results folder, failed ones too: those say nothing."""
        self.sizes: dict[str, int | None] = {}
        self.there: set[str] = set()
        self.alike: dict[tuple[Any, ...], deque[Record]] = {}
        for record in records:
            if record["status"] != "ok":
                continue
            identity = record["identity"]
            self.sizes[identity["model"]["weights"]] = record["baseline"].get("weight_bytes")
            self.there.update(_shared(identity).values())
            for key in _keys(identity):
                self.alike.setdefault(key, deque(maxlen=ENOUGH)).append(record)

    def predict(self, point: "Point") -> Cost | None:
        """What a point will take; None if nothing tells. What is shared and there already costs nothing."""
        identity = point.identity
        foreseen = estimate(point)
        size = self.sizes.get(identity["model"]["weights"]) or weight_bytes(point)
        kin = [near for key in _keys(identity) if (near := self.alike.get(key)) and (size is not None or "model" in key[0])]
        if not kin:
            return None if foreseen is None else self._foreseen(identity, *foreseen)

        def at_their_rates(stage: str, near: Iterable[Record]) -> list[float]:
            """Seconds that a stage of this point would take at the rate of each record."""
            mine, found = _work(stage, identity, size), []
            for record in near:
                theirs = _work(stage, record["identity"], self.sizes[record["identity"]["model"]["weights"]])
                found.append(record["cost"]["seconds"].get(stage, 0.0) * (mine / theirs if mine and theirs else 1.0))
            return found

        def paid(stage: str) -> float:
            """Of a stage that most records found done: the most of the nearest of which any did not."""
            return next((most for near in kin if (most := max(at_their_rates(stage, near))) > 0), 0.0)

        nearest = kin[0]
        own = {stage for record in nearest for stage in record["cost"]["seconds"]} - {"total", "load", "noise", *SHARED}
        rest = statistics.median(_rest(record["cost"]["seconds"]) for record in nearest)
        seconds = {stage: statistics.median(at_their_rates(stage, nearest)) for stage in own}
        basis = f"{len(nearest)} finished point{'s' * (len(nearest) > 1)} like it"
        strange = foreseen is not None and _searches(nearest[-1]["identity"]) != _searches(identity)
        if strange and foreseen is not None:  # of another method: its search says nothing of this one
            speed = seconds["evaluate"] / foreseen[0]["evaluate"] if seconds.get("evaluate") and "evaluate" in foreseen[0] else 1.0
            seconds = {stage: spent for stage, spent in seconds.items() if stage not in METHODS_OWN}
            worked_out = {stage: speed * foreseen[0][stage] for stage in METHODS_OWN if stage in foreseen[0]}
            seconds |= worked_out
            basis += ", its method from the size of the model" * bool(worked_out)
        shared = {stage: paid(stage) for stage in SHARED}
        return Cost(
            rest + sum(seconds.values()) + _noise(identity, seconds.get("evaluate", 0.0)),
            paid("load"),
            self._to_pay(identity, shared),
            _memory(nearest, size, self.sizes),
            basis,
        )

    def _to_pay(self, identity: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
        """What is shared and not there: its key and seconds, the float model's rounding noise among it."""
        known = {**seconds, "float noise": _noise(identity, seconds.get("baseline", 0.0))}
        return {key: known[stage] for stage, key in _shared(identity).items() if stage in known and key not in self.there}

    def _foreseen(self, identity: Mapping[str, Any], seconds: Mapping[str, float], held: int) -> Cost:
        """A cost from first principles alone."""
        return Cost(
            sum(spent for stage, spent in seconds.items() if stage not in ("load", *SHARED))
            + _noise(identity, seconds.get("evaluate", 0.0)),
            seconds["load"],
            self._to_pay(identity, seconds),
            held + psutil.Process().memory_info().rss,
            "the size of the model",
        )


def weight_bytes(point: "Point") -> int | None:
    """Bytes of a model's weights in its dtype, before it is loaded; None where nothing tells."""
    extent = point.source.extent()
    return None if extent is None else extent.weights * (4 if point.identity["model"]["dtype"] == "float32" else 2)


def _searches(identity: Mapping[str, Any]) -> tuple[str, bool]:
    return identity["method"]["name"], identity["method"].get("alpha") == "auto"


# What a point has in common with others, the most telling first; without the model, its size is what is told by.
LIKENESS = (
    ("model", "method.name", "scheme", "backend"),
    ("model", "method.name", "backend"),
    ("model", "method.name"),
    ("model",),
    ("method.name", "backend"),
    ("method.name",),
    (),
)


def _keys(identity: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """What points that are alike have in common, the most telling first: first with what they search, then without."""
    method = identity["method"]
    parts = {
        "model": canonical_json(identity["model"]),
        "method.name": method["name"],
        "scheme": canonical_json(identity["scheme"]),
        "backend": identity["backend"],
    }
    for paths in LIKENESS:
        shared = (identity["device"], identity["eval"]["name"], *(parts[path] for path in paths))
        yield paths, shared, method.get("alpha") == "auto"
        yield paths, shared


def _work(stage: str, identity: Mapping[str, Any], size: int | None) -> float | None:
    """How much a stage has to do, in units of its own; None where it cannot be told (all images of a data set)."""
    data = identity["data"] if stage in ("baseline", "evaluate") else identity["calibration"] if stage == "calibrate" else None
    if size is None or (data is not None and data.get("windows", data.get("images")) is None):
        return None
    if data is None:
        return float(size)
    return float(size) * data.get("windows", data.get("images")) * identity["data"].get("window", 1)


def _noise(identity: Mapping[str, Any], evaluation: float) -> float:
    """Seconds in which `noise=N` evaluates N times more."""
    return float(identity.get("noise", 0)) * evaluation


def _shared(identity: Mapping[str, Any]) -> dict[str, str]:
    """Stage -> what its result is known by: whatever it depends on."""
    floats = [identity["model"], identity["data"], identity["eval"], identity["device"], "baseline"]
    noisy = {"float noise": digest([*floats, identity["noise"]])} if identity.get("noise") else {}
    return {
        **noisy,
        "baseline": digest(floats),
        "calibrate": digest(
            [identity["model"], identity["calibration"], *map(identity["data"].get, ("window", "bos")), identity["scheme"]["ops"]]
        ),
    }


def _rest(seconds: Mapping[str, float]) -> float:
    """What no stage accounts for."""
    return max(0.0, seconds["total"] - sum(spent for stage, spent in seconds.items() if stage != "total"))


def _memory(near: Iterable[Record], size: int | None, sizes: Mapping[str, int | None]) -> int | None:
    """The most that points like this one held: scaled, beyond what a process holds without a model, by the size of theirs."""
    base = psutil.Process().memory_info().rss  # this process has loaded the same libraries and no model
    found = []
    for record in near:
        cost, theirs = record["cost"], sizes[record["identity"]["model"]["weights"]]
        held = cost.get("peak_gpu_bytes", cost["peak_rss_bytes"])
        if held is not None:
            scale = size / theirs if size and theirs else 1.0
            found.append(min(base, held) + max(0, held - base) * scale)
    return int(max(found)) if found else None


def wall_clock(costs: Sequence[Cost], workers: int) -> float:
    """Seconds of a sweep on so many workers, each as fast as one that is alone; what is shared comes first, once.

    The longest point goes first to whoever is free: a launcher that keeps the order of the sweep may take longer.
    """
    if not costs:
        return 0.0
    shared: dict[str, float] = {}
    for cost in costs:
        shared |= cost.shared
    free = [cost.load for cost in costs[:workers]]
    heapify(free)
    for cost in sorted(costs, key=lambda cost: cost.seconds, reverse=True):
        heapreplace(free, free[0] + cost.seconds)
    return sum(shared.values()) + max(free)
