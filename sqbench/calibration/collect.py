"""The streaming pass: every quantizable input of a model seen once, kept as statistics that serve any method, bits and alpha."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench import tensorfile
from sqbench.progress import track
from sqbench.quant.statistics import ROWS, InputStatistics
from sqbench.storage import digest

log = logging.getLogger(__name__)

VERSION = 1  # of what is collected; part of the cache key


class CalibrationError(Exception):
    """A layer saw a value that no range can hold."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a model's quantizable inputs.

    Attributes:
        inputs: site -> statistics of the tensor that is read there.
        sample: [S, ...] model inputs that a search over block outputs may replay.
    """

    inputs: dict[str, InputStatistics]
    sample: Tensor


@torch.no_grad()
def collect(module: nn.Module, run: Callable[[Tensor], Any], sites: Sequence[str], batches: Tensor, search: int = 4) -> Statistics:
    """Run `batches` [B, ...] through the model one at a time and accumulate the input of every site.

    Args:
        run: one forward pass over a batch [1, ...]; the model's head may be left out.
        sites: names of linear layers; the first positional input of each is observed.
        search: how many of the batches to keep as the replay sample.

    Raises:
        CalibrationError: NaN or infinity, naming the layer.
    """
    inputs: dict[str, InputStatistics] = {}
    keep_rows = max(1, -(-ROWS // len(batches)))

    def observe(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in inputs:
                inputs[name] = InputStatistics.empty(x.shape[-1], x.device)
            try:
                inputs[name].update(x, keep_rows)
            except FloatingPointError as error:
                raise CalibrationError(f"{error} in the input of {name} during calibration") from error

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(observe(name)) for name in sites]
    try:
        for batch in track(batches.split(1), "calibrate"):
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return Statistics(inputs, batches[:search].clone())


def collect_cached(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    sites: Sequence[str],
    batches: Tensor,
    search: int,
    *,
    fingerprint: str,
    folder: Path,
) -> Statistics:
    """`collect`, read from `folder` if the same model saw the same batches before."""
    parameter = next(module.parameters())
    key = {
        "version": VERSION,
        "model": fingerprint,
        "batches": digest(batches.tolist()),
        "sites": list(sites),
        "dtype": str(parameter.dtype),
        "device": parameter.device.type,
    }

    def compute() -> tensorfile.Content:
        statistics = collect(module, run, sites, batches, search)
        tensors = {
            f"{name}/{field}": value for name, stats in statistics.inputs.items() for field, value in stats.tensors().items()
        }
        return tensors, key

    tensors, _ = tensorfile.cached(folder / f"{digest(key)[:16]}.safetensors", compute)
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        site, _, field = name.rpartition("/")
        by_site.setdefault(site, {})[field] = value.to(parameter.device) if value.dim() else value
    inputs = {site: InputStatistics.from_tensors(by_site[site]) for site in sites if site in by_site}
    return Statistics(inputs, batches[:search].clone())
