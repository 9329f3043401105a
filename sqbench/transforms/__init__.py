"""Transforms: which equivalent float model is easier to quantize? Importing this package registers them."""

import importlib
import pkgutil

from sqbench.transforms.base import TRANSFORMS, Change, Transform

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["TRANSFORMS", "Change", "Transform"]
