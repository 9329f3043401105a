"""Mirrors of the store. A tracker is never asked whether a point is done, and it never makes a point fail."""
