"""Mirrors of the store. A tracker is never asked whether a point is done, and never fails one."""
