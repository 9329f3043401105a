"""What makes two points the same: everything that can change a number, and nothing that cannot."""

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from sqbench.config import device_of
from sqbench.data import Text
from sqbench.methods import METHODS, configured, scheme_of
from sqbench.models import Source
from sqbench.storage import digest

REVISION = 1  # of the code's numbers: raised when a change of sqbench changes results


def identity(cfg: DictConfig, source: Source, text: Text, other: Text | None) -> dict[str, Any]:
    """The identity of a configured point, as plain data.

    A method without alpha has none here, and the float model neither scheme nor calibration: a sweep over either is one point.
    """
    method = METHODS[cfg.method.name]
    calibrated = not method.is_float
    return {
        "revision": REVISION,
        "model": {"weights": source.fingerprint, "dtype": cfg.model.dtype, "keep": sorted(cfg.model.keep)},
        "data": {"text": text.fingerprint, "window": cfg.data.window, "windows": cfg.data.windows},
        "method": {"name": cfg.method.name, **asdict(configured(cfg))},
        "scheme": asdict(scheme_of(cfg)),
        "calibration": {
            "windows": cfg.calibration.windows,
            "seed": cfg.calibration.seed,
            "search_windows": cfg.calibration.search_windows,
            "text": other.fingerprint if other is not None else text.fingerprint,
        }
        if calibrated
        else None,
        "eval": {"name": cfg.eval.name, "resamples": cfg.eval.resamples, "level": cfg.eval.level},
        "seed": cfg.seed if calibrated else 0,
        "backend": cfg.backend,
        "device": device_of(cfg.device).type,
    }


def point_id(identity: dict[str, Any]) -> str:
    """First 12 hex digits of the sha256 of the canonical identity."""
    return digest(identity)[:12]
