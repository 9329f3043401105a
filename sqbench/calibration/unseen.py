"""Statistics without inputs: the norm before a layer is all that is known of the layer's input."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sqbench.calibration.collect import Statistics, replay_sample
from sqbench.calibration.shelf import check_room
from sqbench.console.progress import track
from sqbench.data.base import Unseen
from sqbench.quant.access import channels_of
from sqbench.statistics import complete
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.rows import ROWS
from sqbench.statistics.windows import gram_shape

ROWS_EACH = 128  # rows of channels that each example stands for


@torch.no_grad()
def imagine(
    module: nn.Module,
    sites: Sequence[str],
    norms: Mapping[str, Callable[[Tensor], Tensor]],
    inputs: Unseen,
    search: int,
    needs: Iterable[str] | None = None,
) -> Statistics:
    """Statistics of N(0, 1) values, independent in every channel. They go through the norm that writes a site, if there is one.

    A norm with a normal input has a normal output. Its weight is the spread of the output, its bias the mean. A tensor that no
    norm writes has an unknown scale from training. Its ranges are then a guess, and its site is among `guessed`.

    Args:
        sites: names of layers.
        norms: site -> the function of its norm, which takes standard normal rows [examples, rows, channels].
        search: how many of the inputs to keep as the replay sample.
        needs: names of collectors. None is everything except `gram`. A convolution has no `gram`: nothing is known of how its
            pixels go together.

    Raises:
        UserError: an unknown collector, or Gram matrices that do not fit into memory.
    """
    names = complete(needs)
    if "gram" in names:
        check_room(module, sites)
    generator = torch.Generator().manual_seed(inputs.seed)
    device = next(module.parameters()).device
    keep_rows = max(1, -(-ROWS // inputs.examples))
    found = {}
    for site in track(sites, "calibrate"):
        layer = module.get_submodule(site)
        width = channels_of(layer)
        own = names if gram_shape(layer) == (1, width) else names - {"gram"}
        found[site] = InputStatistics.empty(width, device, own, site)
        for _ in range(inputs.examples):
            rows = torch.randn(1, ROWS_EACH, width, generator=generator).to(device)
            found[site].update(norms[site](rows) if site in norms else rows, keep_rows)
    return Statistics(found, replay_sample(inputs, search), frozenset(sites) - norms.keys())
