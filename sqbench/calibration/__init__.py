"""Calibration: one streaming pass, its statistics and their cache. Also statistics without inputs."""

from sqbench.calibration.blocks import observe_model
from sqbench.calibration.cache import collect_cached
from sqbench.calibration.collect import Statistics, as_batches, collect, replay_sample, uncollected
from sqbench.calibration.model import calibrate
from sqbench.calibration.observe import observe
from sqbench.calibration.unseen import imagine

__all__ = [
    "Statistics",
    "as_batches",
    "calibrate",
    "collect",
    "collect_cached",
    "imagine",
    "observe",
    "observe_model",
    "replay_sample",
    "uncollected",
]
