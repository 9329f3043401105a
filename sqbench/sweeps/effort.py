"""The estimated cost of a point without similar finished points, from its model, data and method, and this machine's speed.

The estimate is a sum of four kinds of work: products, roundings, statistics and predictions. Every process times each kind once, on
a small piece. On an idle machine the estimate is good to a factor of two or three. Finished points replace it
(`sqbench.sweeps.cost`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from sqbench.formats.codec import round_trip
from sqbench.formats.format import Format
from sqbench.models.extent import Extent
from sqbench.parts.part import Effort
from sqbench.statistics.blocks import GRAM_BLOCK
from sqbench.statistics.inputs import InputStatistics

if TYPE_CHECKING:
    from sqbench.running.point import Point

BETWEEN = 1.5  # time of a forward pass over that of its products alone: norms, attention, activation functions
START = 6.0  # seconds in which a process imports the libraries of models and kernels
STAGE = 0.1  # seconds that every stage takes at least
READ = 1e9  # bytes of weights that are read per second
DECODED = 5e-4  # seconds per image, the first time that it is read
DESCRIBED = 4  # roundings of every weight that cost as much as its noise in the report
COPIES = 3  # of the weights: loaded, for the fast float kernel, and quantized; the last two are float32
TRAINED = 4  # further copies while training: gradients, two moments, the best epoch
LOGITS = 6  # copies of a batch's predictions that an evaluation holds at once, of both models


@dataclass(frozen=True)
class Machine:
    """The amount of each kind of work that is done per second."""

    products: float  # floating-point operations
    rounded: float
    observed: float  # numbers that statistics take in
    predicted: float  # logits


@cache
def machine(device: str, threads: int) -> Machine:
    """The speed of a device, timed in a fraction of a second. `threads` is the number in use, for the cache key only."""
    x, weight = torch.randn(256, 512, device=device), torch.randn(1024, 512, device=device)
    seen, fmt = InputStatistics.empty(512, device), Format(4, symmetric=False, granularity="group", group_size=64)
    logits = torch.randn(16, 16384, device=device)
    return Machine(
        2 * x.numel() * len(weight) / _seconds(lambda: functional.linear(x, weight), device),
        weight.numel() / _seconds(lambda: round_trip(weight, fmt), device),
        x.numel() / _seconds(lambda: seen.update(x), device),
        logits.numel() / _seconds(lambda: functional.log_softmax(logits, -1), device),
    )


def _seconds(run: Callable[[], Any], device: str) -> float:
    """The least seconds of several runs: the time on an idle machine."""
    took = []
    for _ in range(12):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return min(took)


@dataclass(frozen=True)
class Work:
    """The amounts of work of a point, in units: tokens or images.

    Attributes:
        evaluated, calibrated, searched: units.
        at_once: units in one batch of the evaluation.
        fitted: images that a head is fitted on first.
        learnt: images of all gradient steps, over all epochs.
        steps: number of gradient steps.
    """

    evaluated: int
    calibrated: int
    searched: int
    at_once: int
    fitted: int = 0
    learnt: int = 0
    steps: int = 0


def work_of(point: "Point") -> Work | None:
    """The amounts of work of a point. None if they are unknown: of sentences, with mixed precision, or of another tool."""
    identity, resolved = point.identity, point.resolved
    if not resolved.evaluation.evaluation.single_pass or resolved.kind == "sentences" or {"mixed", "tool"} & identity.keys():
        return None
    data, calibration = identity["data"], identity["calibration"] or {}
    window = data.get("window", 1)
    kind = "windows" if "windows" in data else "images"
    seen = 0 if calibration.get("source") == "weights" else calibration.get(kind, 0)
    fitted = resolved.model.head_images if identity["model"].get("head", {}).get("name", "own") != "own" else 0
    learnt, steps = gradient_steps(point)
    searched = calibration.get(f"search_{kind}", 0) * window
    return Work(data[kind] * window, seen * window, searched, window if kind == "windows" else 50, fitted, learnt, steps)


def gradient_steps(point: "Point") -> tuple[int, int]:
    """The images of all gradient steps of a point, and the largest number of steps. Both are 0 without training."""
    recipe = point.resolved.recipe
    train = getattr(point.corpus, "train", ())
    return recipe.effort(point.identity["scheme"]).learnt(len(train)) if recipe.trains else (0, 0)


def estimate(point: "Point") -> tuple[dict[str, float], int] | None:
    """Seconds of every stage of a point, and the bytes that it holds. None if the size or the length is unknown."""
    extent, work = point.source.extent(), work_of(point)
    if extent is None or work is None:
        return None
    recipe = point.resolved.recipe
    effort = Effort() if recipe.is_float else recipe.effort(point.identity["scheme"])
    return _seconds_of(extent, work, effort, point), _bytes_of(extent, work, point)


def _seconds_of(extent: Extent, work: Work, effort: Effort, point: "Point") -> dict[str, float]:
    identity = point.identity
    here = machine(identity["device"], point.resolved.options.threads or torch.get_num_threads())
    forward = BETWEEN * extent.flops / here.products
    decoded = 0.0 if "windows" in identity["data"] else DECODED
    inside = extent.inputs / here.rounded if identity["scheme"].get("activations") else 0.0
    said = extent.outputs / here.predicted
    stages = {
        "load": START + 4 * extent.weights / READ + work.fitted * (forward + decoded),
        "baseline": STAGE + work.evaluated * (forward + said + decoded),
    }
    if point.resolved.recipe.is_float:
        return stages
    replayed = effort.replays * work.searched * (forward + inside)
    observed = work.calibrated * (forward + extent.inputs / here.observed + decoded)
    propagated = observed + work.calibrated * (forward + inside)  # every block once in float, once quantized
    blocks = propagated if point.resolved.propagate else 0.0
    stages |= {
        "calibrate": STAGE + (0.0 if blocks else observed),
        "quantize": STAGE + (DESCRIBED + effort.roundings) * extent.weights / here.rounded + replayed + blocks,
        "lower": STAGE,
        "evaluate": STAGE + work.evaluated * (forward + inside + 3 * said),
    }
    if work.steps:  # student forward, twice as much backward, and float model per image; rounding of every weight per step
        stepped = 4 * forward + 3 * inside + decoded
        stages["train"] = work.learnt * stepped + work.steps * 6 * extent.weights / here.rounded
    return stages


def _bytes_of(extent: Extent, work: Work, point: "Point") -> int:
    weights = 4 * extent.weights * (COPIES + TRAINED * bool(work.steps))
    kept = 4 * extent.inputs if work.steps else extent.inputs / 4  # for the backward pass, quantizers' own too; else of some layers
    batch = 4 * work.at_once * (LOGITS * extent.outputs + kept)
    return int(weights + batch + 4 * GRAM_BLOCK * extent.channels * 2)
