"""Models are found, fingerprinted and loaded. Their topology is discovered and proven."""

import torch
from omegaconf import OmegaConf

from sqbench.config import ModelConfig
from sqbench.models import encoder_sources, image_sources, text_sources
from sqbench.models.base import Loader, Model, Source
from sqbench.planning import Absent
from sqbench.storage.files import digest

LOADERS: dict[str, Loader] = {**text_sources.LOADERS, **image_sources.LOADERS, **encoder_sources.LOADERS}

__all__ = ["LOADERS", "Loader", "Model", "Source", "locate"]


def locate(cfg: ModelConfig, kind: str) -> Source:
    """Find a model's files and fingerprint them. Nothing is loaded.

    In a plan, the configuration gives the fingerprint of a model that is not there.

    Args:
        kind: the kind of data that it is to read, one of the loader's.
    """
    try:
        return LOADERS[cfg.loader].finds[kind](cfg)
    except Absent as absent:
        return Source(digest(OmegaConf.to_container(OmegaConf.create(cfg))), _unloadable, first=str(absent))  # type: ignore[call-overload]


def _unloadable(device: torch.device) -> Model:
    raise AssertionError("a plan loads no model that is not there")
