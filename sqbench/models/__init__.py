"""Models: found, fingerprinted, loaded; and their topology, discovered and proven."""

from sqbench.config import ModelConfig
from sqbench.models import image_sources, text_sources
from sqbench.models.base import Loader, Model, Source

LOADERS: dict[str, Loader] = {**text_sources.LOADERS, **image_sources.LOADERS}

__all__ = ["LOADERS", "Loader", "Model", "Source", "locate"]


def locate(cfg: ModelConfig) -> Source:
    """Find a model's files and fingerprint them; nothing is loaded."""
    return LOADERS[cfg.loader].locate(cfg)
