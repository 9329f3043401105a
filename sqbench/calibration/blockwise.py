"""The streaming pass over a model that is never whole in memory. All inputs go through one block after the other."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sqbench.calibration.collect import Statistics, as_batches, replay_sample
from sqbench.calibration.observe import Names, observe
from sqbench.calibration.shelf import Shelf, check_room
from sqbench.data.base import Batches
from sqbench.models.base import Model
from sqbench.models.streaming import StreamedModel
from sqbench.progress import track
from sqbench.quant.statistics import InputStatistics
from sqbench.statistics import complete


def collect_blockwise(
    model: StreamedModel, sites: Sequence[str], inputs: Tensor | Batches, search: int = 4, needs: Iterable[str] | None = None
) -> Statistics:
    """The statistics of `collect`, bit for bit, from one reading of the blocks. Memory holds the hidden states of all inputs.

    Raises:
        CalibrationError, UserError: as `collect` does.
    """
    batches = as_batches(inputs)
    return Statistics(observe_blockwise(model, complete(needs), sites, batches), replay_sample(batches, search))


@torch.no_grad()
def observe_blockwise(
    model: StreamedModel, names: Names, sites: Sequence[str], batches: Batches, shelf: Shelf | None = None
) -> dict[str, InputStatistics]:
    """The statistics of `observe`. With a shelf, only the Gram matrices of the current block are in memory."""
    if "gram" in names and shelf is None:
        check_room(model.module, sites)
    states = [model.enter(batch) for batch in batches]
    found: dict[str, InputStatistics] = {}
    for number, place in enumerate(track(model.places, "calibrate")):
        own = [site for site in sites if site.startswith(f"{place}.")]
        statistics, states = _observe(model.rework(model.block(number)), names, own, states, shelf)
        found |= statistics
    return found


def _observe(
    block: Model, names: Names, sites: Sequence[str], states: list[Tensor], shelf: Shelf | None
) -> tuple[dict[str, InputStatistics], list[Tensor]]:
    """The statistics of a block's sites, and the hidden states that it outputs."""
    after: list[Tensor] = []

    def run(hidden: Tensor) -> None:
        output = block.body(hidden)
        if len(after) < len(states):  # the first pass of several
            after.append(output)

    found = observe(block.module, run, names, sites, Batches(len(states), states.__getitem__, ""), (), shelf) if sites else {}
    for hidden in states[len(after) :]:  # all of them, if there was nothing to observe
        run(hidden)
    return found, after
