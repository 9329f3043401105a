"""Statistics of a model's tensors. They serve any method, bits and alpha that reads no further collector."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.calibration.observe import CalibrationError, Names, observe
from sqbench.data.base import Batches
from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.quant.operations import Point
from sqbench.statistics import complete
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.windows import window_of
from sqbench.storage.files import digest

__all__ = ["CalibrationError", "Statistics", "as_batches", "collect", "replay_sample", "uncollected"]


@dataclass(frozen=True)
class Statistics:
    """Statistics of a model's quantizable tensors.

    Attributes:
        inputs: site -> statistics of the tensor that is read there.
        sample: [S, ...] model inputs that a search over block outputs may replay.
        guessed: sites whose tensor was not seen, and of which nothing is known.
        seen: the inputs that were read, to be read again. None if they cannot be read again.
    """

    inputs: dict[str, InputStatistics]
    sample: Tensor
    guessed: frozenset[str] = frozenset()
    seen: Batches | None = None

    def regained(self, model: Model, needs: Names) -> "Statistics":
        """The statistics of a changed model. What the change made wrong of `needs` is collected again.

        Raises:
            UserError: the inputs cannot be read again.
        """
        lost = [site for site, one in self.inputs.items() if one.lost & needs]
        if not lost:
            return self
        if self.seen is None:
            names = ", ".join(sorted(self.inputs[lost[0]].lost & needs))
            raise UserError(
                f"{lost[0]}: its {names} must be collected again, because scales have moved, and these statistics do not know their"
                " inputs; use ranges=minmax, or statistics of calibrate(model, inputs)"
            )
        found = observe(model.module, model.body, needs, lost, self.seen)
        return replace(self, inputs=self.inputs | {site: self.inputs[site].renewed(found[site]) for site in lost})

    def check_window(self, module: nn.Module, site: str, layer: str) -> None:
        """Raise UserError if a layer reads a tensor through another window than the site's layer, whose own was collected."""
        own, collected = (window_of(module.get_submodule(name)) for name in (layer, site))
        if own != collected:
            raise UserError(
                f"{layer}: reads the same tensor as {site} through another window (kernel, stride, padding or groups), and"
                f" second moments were collected for {site} only; leave it out with layers=..., or use rounding=nearest"
            )


def as_batches(inputs: Tensor | Batches, *, sealed: bool = False) -> Batches:
    """Model inputs [B, ...] as batches of one input, with a fingerprint if `sealed`."""
    if isinstance(inputs, Batches):
        return inputs
    return Batches(len(inputs), lambda number: inputs[number : number + 1], digest(inputs.tolist()) if sealed else "")


def replay_sample(batches: Batches, count: int) -> Tensor:
    """The first `count` examples of the batches. One batch holds them, so it ends before the first of another shape."""
    kept: list[Tensor] = []
    for batch in batches:
        if kept and batch.shape[1:] != kept[0].shape[1:]:
            break
        kept.append(batch)
        if sum(len(part) for part in kept) >= count:
            break
    return torch.cat(kept)[:count].clone() if kept else torch.empty(0)


def uncollected(inputs: Tensor | Batches, search: int) -> Statistics:
    """Statistics of inputs that nothing has read yet. Propagated calibration reads them while it quantizes."""
    batches = as_batches(inputs)
    return Statistics({}, replay_sample(batches, search), seen=batches)


def collect(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    sites: Sequence[str],
    inputs: Tensor | Batches,
    search: int = 4,
    points: Sequence[Point] = (),
    needs: Iterable[str] | None = None,
) -> Statistics:
    """Run the inputs through the model batch by batch and collect the statistics of every site's tensor.

    Args:
        run, sites, points: as for `observe`.
        inputs: model inputs. Each input of a tensor [B, ...] is a batch.
        search: how many inputs to keep as the replay sample.
        needs: names of collectors. None is everything except `gram`.

    Raises:
        CalibrationError: a layer saw NaN or infinity (the error names it), or there was nothing to calibrate on.
        UserError: an unknown collector, or Gram matrices that do not fit into memory.
    """
    batches = as_batches(inputs)
    found = observe(module, run, complete(needs), sites, batches, points)
    return Statistics(found, replay_sample(batches, search), seen=batches)
