"""The streaming pass over a model that is never whole in memory. All inputs go through one block after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqbench.calibration.collect import Statistics, as_batches, collect, replay_sample
from sqbench.data.base import Batches
from sqbench.models.base import Model
from sqbench.models.streaming import StreamedModel
from sqbench.progress import track
from sqbench.quant.statistics import InputStatistics


@torch.no_grad()
def collect_blockwise(model: StreamedModel, sites: Sequence[str], inputs: Tensor | Batches, search: int = 4) -> Statistics:
    """The statistics of `collect`, bit for bit, from one reading of the blocks. Memory holds the hidden states of all inputs.

    Raises:
        CalibrationError: as `collect` does.
    """
    batches = as_batches(inputs)
    states = [model.enter(batch) for batch in batches]
    found: dict[str, InputStatistics] = {}
    for number, place in enumerate(track(model.places, "calibrate")):
        own = [site for site in sites if site.startswith(f"{place}.")]
        statistics, states = _observe(model.rework(model.block(number)), own, states)
        found |= statistics
    return Statistics(found, replay_sample(batches, search))


def _observe(block: Model, sites: Sequence[str], states: list[Tensor]) -> tuple[dict[str, InputStatistics], list[Tensor]]:
    """The statistics of a block's sites, and the hidden states that it outputs."""
    after: list[Tensor] = []

    def run(hidden: Tensor) -> None:
        after.append(block.body(hidden))

    if sites:
        return collect(block.module, run, sites, Batches(len(states), states.__getitem__, ""), 0).inputs, after
    for hidden in states:
        run(hidden)
    return {}, after
