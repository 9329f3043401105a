"""The predicted cost of points, learnt from finished points: seconds of each stage, and memory.

The seconds of a stage are a rate times its work. `evaluate` runs the model over the evaluation data, and `calibrate` over the
calibration data. Every other stage works through the model once. Rates come from the finished points that are most like the point.
All have its evaluation and device. The nearest also have its model, method, bits and backend. The farthest are of other models and
are scaled by size. `sqbench.sweeps.effort` works out what finished points do not tell, at the speed at which they ran: the search
of a method without finished points, or everything if no point has finished. The first point that needs the calibration or the
float result pays for it.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Any

import psutil

from sqbench.comparison import SIZE
from sqbench.config import size_of
from sqbench.records.record import Record
from sqbench.storage.files import canonical_json, digest
from sqbench.sweeps.effort import estimate

if TYPE_CHECKING:
    from sqbench.running.point import Point


ENOUGH = 64  # finished points of one kind that are used, the last in the order of their names
SHARED = ("baseline", "calibrate")  # stages whose result other points reuse
METHODS_OWN = ("quantize", "train")  # stages whose work depends on the method


@dataclass(frozen=True)
class Cost:
    """The predicted cost of one point.

    Attributes:
        seconds: of its own stages.
        load: seconds that a process spends before its first point.
        shared: key of a result that is computed once -> its seconds.
        memory: peak bytes; None where nothing is known.
        basis: the source of the prediction.
    """

    seconds: float
    load: float = 0.0
    shared: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    basis: str = ""


class History:
    """Finished points, indexed by what they may have in common with another point."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Index the records of a results folder. Failed records are ignored."""
        self.sizes: dict[str, float | None] = {}
        self.there: set[str] = set()
        self.alike: dict[tuple[Any, ...], deque[Record]] = {}
        for record in records:
            if not record.finished:
                continue
            identity = record.identity
            self.sizes[identity["model"]["weights"]] = record.baseline.get(SIZE.name)
            self.there.update(_shared(identity).values())
            for key in _keys(identity):
                self.alike.setdefault(key, deque(maxlen=ENOUGH)).append(record)

    def predict(self, point: "Point") -> Cost | None:
        """The cost of a point; None if it cannot be predicted. Shared results that exist already cost nothing."""
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
                theirs = _work(stage, record.identity, self.sizes[record.identity["model"]["weights"]])
                found.append(record.cost["seconds"].get(stage, 0.0) * (mine / theirs if mine and theirs else 1.0))
            return found

        def paid(stage: str) -> float:
            """Seconds of a shared stage, which most records found done: the most in the nearest group where one ran it."""
            return next((most for near in kin if (most := max(at_their_rates(stage, near))) > 0), 0.0)

        nearest = kin[0]
        own = {stage for record in nearest for stage in record.cost["seconds"]} - {"total", "load", "noise", *SHARED}
        rest = statistics.median(_rest(record.cost["seconds"]) for record in nearest)
        seconds = {stage: statistics.median(at_their_rates(stage, nearest)) for stage in own}
        basis = f"{len(nearest)} finished point{'s' * (len(nearest) > 1)} like it"
        strange = foreseen is not None and _searches(nearest[-1].identity) != _searches(identity)
        if strange and foreseen is not None:  # of another method: its search says nothing about this search
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
        """Key -> seconds of every shared result that is missing. The float model's rounding noise is one of them."""
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
    """Bytes of a model's weights in its dtype, before it is loaded; None if the size is unknown."""
    extent = point.source.extent()
    return None if extent is None else extent.weights * (4 if point.identity["model"]["dtype"] == "float32" else 2)


def _searches(identity: Mapping[str, Any]) -> tuple[str, bool]:
    return _method(identity), identity["method"].get("alpha") == "auto"


def _method(identity: Mapping[str, Any]) -> str:
    """What decides how long quantizing takes: the method, the parts of its recipe, and another tool with its arguments."""
    method = identity["method"]
    return canonical_json([method["name"], identity.get("recipe"), method.get("tool"), method.get("arguments")])


# What a point may have in common with others, the most informative first. Points of other models are scaled by size.
LIKENESS = (
    ("model", "method", "scheme", "backend"),
    ("model", "method", "backend"),
    ("model", "method"),
    ("model",),
    ("method", "backend"),
    ("method",),
    (),
)


def _keys(identity: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The index keys of a point, the most informative first. Each comes with whether alpha is searched, then without."""
    method = identity["method"]
    parts = {
        "model": canonical_json(identity["model"]),
        "method": _method(identity),
        "scheme": canonical_json(identity["scheme"]),
        "backend": identity["backend"],
    }
    for paths in LIKENESS:
        shared = (identity["device"], identity["eval"]["name"], *(parts[path] for path in paths))
        yield paths, shared, method.get("alpha") == "auto"
        yield paths, shared


def _work(stage: str, identity: Mapping[str, Any], size: float | None) -> float | None:
    """The amount of work of a stage, in units of its own. None if it is unknown, as for all images of a data set."""
    data = identity["data"] if stage in ("baseline", "evaluate") else identity["calibration"] if stage == "calibrate" else None
    if size is None or (data is not None and size_of(data) is None):
        return None
    if data is None:
        return float(size)
    return float(size) * size_of(data) * identity["data"].get("window", 1)


def _noise(identity: Mapping[str, Any], evaluation: float) -> float:
    """Seconds of the N further evaluations of `noise=N`."""
    return float(identity.get("noise", 0)) * evaluation


def _shared(identity: Mapping[str, Any]) -> dict[str, str]:
    """Stage -> key of its result: a digest of everything that the result depends on."""
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
    """Seconds that no stage accounts for."""
    return max(0.0, seconds["total"] - sum(spent for stage, spent in seconds.items() if stage != "total"))


def _memory(near: Iterable[Record], size: float | None, sizes: Mapping[str, float | None]) -> int | None:
    """Peak bytes of points like this one. The part above that of a process without a model is scaled by model size."""
    base = psutil.Process().memory_info().rss  # this process has loaded the same libraries and no model
    found = []
    for record in near:
        cost, theirs = record.cost, sizes[record.identity["model"]["weights"]]
        held = cost.get("peak_gpu_bytes", cost["peak_rss_bytes"])
        if held is not None:
            scale = size / theirs if size and theirs else 1.0
            found.append(min(base, held) + max(0, held - base) * scale)
    return int(max(found)) if found else None


def wall_clock(costs: Sequence[Cost], workers: int) -> float:
    """Seconds of a sweep on so many workers, each as fast as one alone. Shared results are computed first, and once.

    The longest remaining point goes to the next free worker. A launcher that keeps the order of the sweep may take longer.
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
