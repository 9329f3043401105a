"""Statistics without inputs: the norm before a layer is all that is known of the layer's input."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sqbench.calibration.collect import Statistics, replay_sample
from sqbench.data.base import Unseen
from sqbench.progress import track
from sqbench.quant.layers import channels_of
from sqbench.quant.statistics import ROWS, InputStatistics

ROWS_EACH = 128  # rows of channels that each example stands for


@torch.no_grad()
def imagine(
    module: nn.Module, sites: Sequence[str], norms: Mapping[str, Callable[[Tensor], Tensor]], inputs: Unseen, search: int
) -> Statistics:
    """Statistics of N(0, 1) values, independent in every channel. They go through the norm that writes a site, if there is one.

    A norm with a normal input has a normal output. Its weight is the spread of the output, its bias the mean. A tensor that no
    norm writes has an unknown scale from training. Its ranges are then a guess, and its site is among `guessed`.

    Args:
        sites: names of layers.
        norms: site -> the function of its norm, which takes standard normal rows [examples, rows, channels].
        search: how many of the inputs to keep as the replay sample.
    """
    generator = torch.Generator().manual_seed(inputs.seed)
    device = next(module.parameters()).device
    keep_rows = max(1, -(-ROWS // inputs.examples))
    found = {}
    for site in track(sites, "calibrate"):
        width = channels_of(module.get_submodule(site))
        found[site] = InputStatistics.empty(width, device)
        for _ in range(inputs.examples):
            rows = torch.randn(1, ROWS_EACH, width, generator=generator).to(device)
            found[site].update(norms[site](rows) if site in norms else rows, keep_rows)
    return Statistics(found, replay_sample(inputs, search), frozenset(sites) - norms.keys())
