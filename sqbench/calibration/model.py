"""Statistics of a whole model over its inputs, by whichever way fits: from a pass, from the cache, or without inputs."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch import Tensor

from sqbench.calibration.blocks import observe_model
from sqbench.calibration.cache import collect_cached
from sqbench.calibration.collect import Statistics, as_batches, replay_sample
from sqbench.calibration.unseen import imagine
from sqbench.config import SIZES, CalibrationConfig
from sqbench.data.base import Batches, Unseen
from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.models.norms import writers
from sqbench.statistics import complete


def calibrate(
    model: Model,
    inputs: Tensor | Batches,
    *,
    needs: Iterable[str] | None = None,
    search: int | None = None,
    points: bool = False,
    folder: Path | None = None,
) -> Statistics:
    """Statistics of every quantizable tensor over model inputs, from one streaming pass.

    Args:
        inputs: token windows [B, window], or `Batches` such as `examples.calibration`. `Unseen` inputs are not read. The
            statistics then come from the weights alone.
        needs: names of collectors (`sqbench.statistics.COLLECTORS`), `recipe.needs(scheme)` for example. None is everything
            except `gram`, the full matrices X^T X. Ranges, sums and sample rows are always collected.
        search: how many inputs a search over block outputs may replay. None is the default of the command line.
        points: also collect the tensors that no layer reads. Op sets beyond `linear` quantize them.
        folder: a cache; None computes without one.

    Raises:
        UserError: `points` is set and the inputs are `Unseen`. Weights say nothing about tensors that no layer reads. Or Gram
            matrices do not fit into memory, and there is no folder. Or no collector has such a name.
    """
    if search is None:
        search = getattr(CalibrationConfig, f"search_{SIZES[model.kind]}")
    if isinstance(inputs, Unseen):
        if points:
            raise UserError("bits.ops: calibration.source=weights says nothing of what is between layers; use bits.ops=linear")
        return imagine(model.module, model.topology.sites, writers(model), inputs, search, needs)
    inside, sites = model.topology.points if points else (), model.topology.sites

    observer = partial(observe_model, model)
    if folder is None:
        batches = as_batches(inputs)
        found = observer(complete(needs), sites, batches, inside)
        return Statistics(found, replay_sample(batches, search), seen=batches)
    about = {"fingerprint": model.fingerprint, "dtype": next(model.module.parameters()).dtype, "device": model.device}
    return collect_cached(observer, sites, inputs, search, inside, needs, **about, folder=folder)
