"""Other tools that quantize a whole model. `method=peer` asks one of them, in a process of its own, and reads what it wrote.

Read `tool.py` first. Every other file is one tool.
"""

import importlib
import pkgutil

from sqbench.peers.tool import TOOLS, Order, Tool

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["TOOLS", "Order", "Tool"]
