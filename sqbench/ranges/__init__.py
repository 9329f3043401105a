"""Ranges: which clipping range does a tensor get? Importing this package registers them."""

import importlib
import pkgutil

from sqbench.ranges.base import RANGES, Ranges

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RANGES", "Ranges"]
