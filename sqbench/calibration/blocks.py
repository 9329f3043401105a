"""The streaming pass over any model. One that is read block by block takes all inputs through one block after the other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sqbench.calibration.observe import Names, observe
from sqbench.calibration.shelf import Shelf, check_room
from sqbench.console.progress import track
from sqbench.data.base import Batches
from sqbench.models.base import Model
from sqbench.models.streaming import StreamedModel
from sqbench.quant.operations import Point
from sqbench.statistics.inputs import InputStatistics


@torch.no_grad()
def observe_model(
    model: Model,
    names: Names,
    sites: Sequence[str],
    batches: Batches,
    points: Sequence[Point] = (),
    shelf: Shelf | None = None,
) -> dict[str, InputStatistics]:
    """The statistics of `observe`. A model whose blocks stay on disk gives the same, bit for bit, from one reading of them.

    Memory then holds the hidden states of all inputs. With a shelf, it holds the Gram matrices of the current block alone.
    """
    if not isinstance(model, StreamedModel):
        return observe(model.module, model.body, names, sites, batches, points, shelf)
    if "gram" in names and shelf is None:
        check_room(model.module, sites)
    states = [model.blocks.enter(batch) for batch in batches]
    found: dict[str, InputStatistics] = {}
    for number, place in enumerate(track(model.places, "calibrate")):
        own = [site for site in sites if site.startswith(f"{place}.")]
        statistics, states = observe_block(model.rework(model.block(number)), names, own, states, shelf)  # which frees the block
        found |= statistics
    return found


def observe_block(
    block: Model, names: Names, sites: Sequence[str], states: list[Tensor], shelf: Shelf | None = None
) -> tuple[dict[str, InputStatistics], list[Tensor]]:
    """The statistics of a block's sites over the hidden states that it reads, and the states that it outputs."""
    after: list[Tensor] = []

    def run(hidden: Tensor) -> None:
        output = block.body(hidden)
        if len(after) < len(states):  # the first pass of several
            after.append(output)

    found = observe(block.module, run, names, sites, as_states(states), (), shelf) if sites else {}
    for hidden in states[len(after) :]:  # all of them, if there was nothing to observe
        run(hidden)
    return found, after


def as_states(states: list[Tensor]) -> Batches:
    """Hidden states as the batches that a block reads."""
    make: Callable[[int], Tensor] = states.__getitem__
    return Batches(len(states), make, "")
