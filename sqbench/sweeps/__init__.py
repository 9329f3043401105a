"""Sweeps of points: the way from a command line to points, their plan and their cost."""
