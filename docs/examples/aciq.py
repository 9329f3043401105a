"""A method of your own: ACIQ, the clipping range that is best for Laplace-distributed values (Banner et al., 2019).

python docs/examples/aciq.py --config-dir docs/examples/conf -m method=minmax,aciq bits=w8a8,w4a4
"""

from dataclasses import dataclass

import torch
from scipy.special import lambertw

from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.ranges import RANGES, Ranges, estimators
from sqbench.statistics.inputs import InputStatistics


@RANGES.register("aciq")
@dataclass(frozen=True)
class Aciq(Ranges):
    """Activation ranges end at a multiple a of mean|x| where clipping and rounding cost the least: a e^a = 3 * 4^bits.

    For 2, 3 and 4 bits a is 2.83, 3.89 and 5.03 (section 3.1 of the paper).
    """

    def activation_limits(self, stats: InputStatistics, fmt: Format) -> Limits:
        low, high = estimators.minmax(stats, fmt)
        bound = float(lambertw(3 * 4**fmt.bits).real) * stats.abs_mean.mean()
        return torch.maximum(low, -bound), torch.minimum(high, bound)


if __name__ == "__main__":
    from sqbench.run import main

    main()
