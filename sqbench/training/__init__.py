"""Methods that take gradient steps: the network that they train, the loop, and the checkpoint that survives a kill."""

from sqbench.training.fit import fit

__all__ = ["fit"]
