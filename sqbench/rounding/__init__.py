"""Rounding: which code does each weight get? Importing this package registers the ways."""

import importlib
import pkgutil

from sqbench.rounding.base import ROUNDINGS, Rounding

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ROUNDINGS", "Rounding"]
