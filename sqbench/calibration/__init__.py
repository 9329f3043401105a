"""Calibration: one streaming pass, its statistics and their cache. Also statistics without inputs."""

from sqbench.calibration.blockwise import collect_blockwise, observe_blockwise
from sqbench.calibration.cache import collect_cached
from sqbench.calibration.collect import Statistics, as_batches, collect, replay_sample
from sqbench.calibration.observe import observe
from sqbench.calibration.unseen import imagine

__all__ = [
    "Statistics",
    "as_batches",
    "collect",
    "collect_blockwise",
    "collect_cached",
    "imagine",
    "observe",
    "observe_blockwise",
    "replay_sample",
]
