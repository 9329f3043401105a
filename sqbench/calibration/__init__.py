"""Calibration: one streaming pass, its statistics and their cache. Also statistics without inputs."""

from sqbench.calibration.blockwise import collect_blockwise, observe_blockwise
from sqbench.calibration.cache import collect_cached
from sqbench.calibration.collect import Statistics, collect
from sqbench.calibration.observe import observe
from sqbench.calibration.unseen import imagine

__all__ = ["Statistics", "collect", "collect_blockwise", "collect_cached", "imagine", "observe", "observe_blockwise"]
