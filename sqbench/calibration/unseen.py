"""Statistics without inputs: what layers would read if all that is known of it were the norm that wrote it."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sqbench.calibration.collect import Statistics, replay_sample
from sqbench.data.base import Unseen
from sqbench.progress import track
from sqbench.quant.layers import channels_of
from sqbench.quant.statistics import ROWS, InputStatistics

ROWS_EACH = 128  # rows of an input's channels that each example stands for


@torch.no_grad()
def imagine(
    module: nn.Module, sites: Sequence[str], norms: Mapping[str, Callable[[Tensor], Tensor]], inputs: Unseen, search: int
) -> Statistics:
    """Statistics of N(0, 1), independent from channel to channel: through the norm that writes a site, or as it is.

    A norm's output is normal with its weight for spread and its bias for mean, if what it reads is normal. What no norm writes has
    whatever scale training gave it: its ranges here are a guess, and its site is among `guessed`.

    Args:
        sites: names of layers.
        norms: site -> what its norm makes of standard normal rows [examples, rows, channels].
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
