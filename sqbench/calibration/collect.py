"""The streaming pass: it sees every quantizable tensor of a model once. Its statistics serve any method, bits and alpha."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench import tensorfile
from sqbench.data.base import Batches
from sqbench.progress import track
from sqbench.quant.layers import channels_last
from sqbench.quant.operations import Point, visiting
from sqbench.quant.statistics import ROWS, InputStatistics
from sqbench.storage import digest

log = logging.getLogger(__name__)

VERSION = 2  # of the collected statistics, part of the cache key


class CalibrationError(Exception):
    """Calibration saw NaN or infinity, or no input at all."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a model's quantizable tensors.

    Attributes:
        inputs: site -> statistics of the tensor that is read there.
        sample: [S, ...] model inputs that a search over block outputs may replay.
        guessed: sites whose tensor was not seen, and of which nothing is known.
    """

    inputs: dict[str, InputStatistics]
    sample: Tensor
    guessed: frozenset[str] = frozenset()


def as_batches(inputs: Tensor | Batches, *, sealed: bool = False) -> Batches:
    """Model inputs [B, ...] as batches of one input, with a fingerprint if `sealed`."""
    if isinstance(inputs, Batches):
        return inputs
    return Batches(len(inputs), lambda number: inputs[number : number + 1], digest(inputs.tolist()) if sealed else "")


def replay_sample(batches: Batches, count: int) -> Tensor:
    """The first `count` examples of the batches."""
    kept: list[Tensor] = []
    for batch in batches:
        kept.append(batch)
        if sum(len(part) for part in kept) >= count:
            break
    return torch.cat(kept)[:count].clone() if kept else torch.empty(0)


@torch.no_grad()
def collect(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    sites: Sequence[str],
    inputs: Tensor | Batches,
    search: int = 4,
    points: Sequence[Point] = (),
) -> Statistics:
    """Run the inputs through the model batch by batch and collect the statistics of every site's tensor.

    Args:
        run: one forward pass over a batch. It may leave out the model's head.
        sites: names of layers. The first positional input of each is observed.
        inputs: model inputs. Each input of a tensor [B, ...] is a batch.
        search: how many inputs to keep as the replay sample.
        points: tensors inside modules to observe too.

    Raises:
        CalibrationError: a layer saw NaN or infinity (the error names it), or there was nothing to calibrate on.
    """
    found: dict[str, InputStatistics] = {}
    batches = as_batches(inputs)
    keep_rows = max(1, -(-ROWS // max(len(batches), 1)))

    def take(site: str, x: Tensor) -> None:
        if site not in found:
            found[site] = InputStatistics.empty(x.shape[-1], x.device)
        try:
            found[site].update(x, keep_rows)
        except FloatingPointError as error:
            raise CalibrationError(f"{error} in the input of {site} during calibration") from error

    def observe(name: str) -> Callable[..., None]:
        return lambda layer, args: take(name, channels_last(layer, args[0]))

    def visit(point: Point, x: Tensor) -> Tensor:
        take(point.site, point.rows(x))
        return x

    handles = [module.get_submodule(name).register_forward_pre_hook(observe(name)) for name in sites]
    try:
        with visiting(module, list(points), visit):
            for batch in track(batches, "calibrate"):
                run(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise CalibrationError("no input to calibrate on: every example was corrupt")
    return Statistics(found, replay_sample(batches, search))


def collect_cached(
    collector: Callable[[Sequence[str], Batches, Sequence[Point]], Statistics],
    sites: Sequence[str],
    inputs: Tensor | Batches,
    search: int,
    points: Sequence[Point] = (),
    *,
    fingerprint: str,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
) -> Statistics:
    """The statistics of a collector, read from `folder` if the same model saw the same inputs before.

    Layers and points have separate cache files, so the collector may run once for each.

    Args:
        collector: `collect` for one model. It takes sites, inputs and points.
        fingerprint, dtype, device: those of the model. They are part of the cache key.
    """
    batches = as_batches(inputs, sealed=True)
    found: dict[str, InputStatistics] = {}
    for wanted, inside in ((list(sites), []), ([], list(points))):
        names = wanted or [point.site for point in inside]
        if not names:
            continue
        key = {
            "version": VERSION,
            "model": fingerprint,
            "batches": batches.fingerprint,
            "sites": names,
            "dtype": str(dtype),
            "device": device.type,
        }

        def compute(wanted: list[str] = wanted, inside: list[Point] = inside, key: dict[str, Any] = key) -> tensorfile.Content:
            statistics = collector(wanted, batches, inside)
            tensors = {f"{name}/{part}": value for name, one in statistics.inputs.items() for part, value in one.tensors().items()}
            return tensors, key

        tensors, _ = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
        by_site: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            site, _, part = name.rpartition("/")
            by_site.setdefault(site, {})[part] = value.to(device) if value.dim() else value
        found |= {site: InputStatistics.from_tensors(by_site[site]) for site in names if site in by_site}
    return Statistics(found, replay_sample(batches, search))
