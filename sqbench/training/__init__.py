"""Methods that take gradient steps: the network they train, the loop, and what survives a kill."""

from sqbench.training.fit import fit

__all__ = ["fit"]
