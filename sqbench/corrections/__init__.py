"""Corrections: what is repaired after rounding? Importing this package registers them."""

import importlib
import pkgutil

from sqbench.corrections.base import CORRECTIONS, Correction

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["CORRECTIONS", "Correction"]
