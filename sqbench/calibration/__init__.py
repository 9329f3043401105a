"""Calibration: one streaming pass, its statistics and their cache. Also statistics without inputs."""

from sqbench.calibration.blockwise import collect_blockwise
from sqbench.calibration.collect import Statistics, collect, collect_cached
from sqbench.calibration.unseen import imagine

__all__ = ["Statistics", "collect", "collect_blockwise", "collect_cached", "imagine"]
