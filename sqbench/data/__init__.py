"""Data sets of text, of labelled texts and of images, local or downloaded."""

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import hub_text, images, labelled_text, text
from sqbench.data.base import Batches, Corpus, DataSource, Examples
from sqbench.data.text import Windows

SOURCES: dict[str, DataSource] = {**text.SOURCES, **images.SOURCES, **labelled_text.SOURCES, **hub_text.SOURCES}

__all__ = ["SOURCES", "Batches", "Corpus", "Examples", "Windows", "fetch"]


def fetch(cfg: DataConfig, calibration: CalibrationConfig) -> Corpus:
    """Find a data set and fingerprint it. Nothing is tokenised or decoded."""
    return SOURCES[cfg.source].fetch(cfg, calibration)
