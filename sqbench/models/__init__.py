"""Models: found, fingerprinted, loaded; and their topology, discovered and proven."""

from typing import TYPE_CHECKING

from sqbench.config import ModelConfig
from sqbench.models.source import LOADERS, Source

if TYPE_CHECKING:
    import torch

    from sqbench.models.language import LanguageModel

__all__ = ["LOADERS", "Source", "load", "locate"]


def locate(cfg: ModelConfig) -> Source:
    """Find a model's files and fingerprint them; nothing is loaded."""
    return LOADERS[cfg.loader](cfg)


def load(cfg: ModelConfig, source: Source, device: "torch.device") -> "LanguageModel":
    """Load located weights onto a device."""
    from sqbench.models.language import load_language_model

    return load_language_model(
        source.folder,
        name=cfg.name,
        fingerprint=source.fingerprint,
        dtype=cfg.dtype,
        trust_remote_code=cfg.trust_remote_code,
        keep=tuple(cfg.keep),
        device=device,
    )
