"""The streaming pass over a model that is never whole in memory: all inputs through one block after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqbench.calibration.collect import Statistics, as_batches, collect, replay_sample
from sqbench.data.base import Batches
from sqbench.models.streaming import StreamedModel
from sqbench.progress import track
from sqbench.quant.statistics import InputStatistics


@torch.no_grad()
def collect_blockwise(model: StreamedModel, sites: Sequence[str], inputs: Tensor | Batches, search: int = 4) -> Statistics:
    """What `collect` finds of the same model, bit by bit, in one reading of its blocks; hidden states of all inputs are held.

    Raises:
        CalibrationError: as `collect` does.
    """
    batches = as_batches(inputs)
    states = [model.enter(batch) for batch in batches]
    found: dict[str, InputStatistics] = {}
    for number, place in enumerate(track(model.places, "calibrate")):
        reworked = model.rework(model.block(number))
        own = [site for site in sites if site.startswith(f"{place}.")]
        after: list[Tensor] = []

        def run(hidden: Tensor, reworked=reworked, after=after) -> None:  # type: ignore[no-untyped-def]
            after.append(reworked.body(hidden))

        if own:
            found |= collect(reworked.module, run, own, Batches(len(states), states.__getitem__, ""), 0).inputs
        else:
            for hidden in states:
                run(hidden)
        states = after
        del reworked, run  # before the next one is read
    return Statistics(found, replay_sample(batches, search))
