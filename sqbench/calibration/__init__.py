"""Calibration: one streaming pass, its statistics, and their cache."""

from sqbench.calibration.collect import Statistics, collect, collect_cached

__all__ = ["Statistics", "collect", "collect_cached"]
