"""The source of a quantized checkpoint, and of the float model that it is compared with."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

from sqbench.checkpoints.folder import QuantizedFolder, vocabulary_of
from sqbench.checkpoints.gguf import GGUFFile
from sqbench.checkpoints.gguf_parts import gguf_in
from sqbench.config import CONF_DIR, ModelConfig
from sqbench.errors import UserError
from sqbench.models.base import Quantized, Source
from sqbench.models.folder import context_of, read_config
from sqbench.models.language import LanguageModel
from sqbench.models.text_sources import LOADERS, PATTERNS, from_hub_or_folder
from sqbench.storage.files import digest, known_digest

UNLIKE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def locate(cfg: ModelConfig) -> Source:
    """Find a quantized checkpoint and its parent. Only headers are read.

    Raises:
        UserError: either is not there, the checkpoint cannot be read, or the parent is of another architecture.
    """
    found, files = _opened(Path(cfg.name).expanduser(), f"model.name={cfg.name}")
    own = digest({path.name: known_digest(path) for path in files})
    load = partial(_load, found, cfg, own)
    quantized = Quantized(own, load, found.scheme, parent=cfg.parent is not None)
    if cfg.parent is None:
        return Source(own, load, None, context_of(found.config), quantized=quantized)
    parent = _parent(cfg, cfg.parent)
    check_parent(found, parent, cfg.parent)
    return replace(parent, quantized=quantized)


def _opened(path: Path, place: str) -> tuple[QuantizedFolder, list[Path]]:
    """A checkpoint by what its files hold, whatever they are called, and the files that can change its numbers."""
    if not path.exists():
        raise UserError(f"{place}: no such file or folder (from {Path.cwd()}); model=checkpoint reads local ones")
    file = path if path.is_file() else gguf_in(path, place)
    if file is not None:
        found = GGUFFile.of(file, place)
        return found, list(found.parts)
    return QuantizedFolder.of(path, place), [one for pattern in PATTERNS for one in sorted(path.glob(pattern))]


def _load(found: QuantizedFolder, cfg: ModelConfig, fingerprint: str, device: torch.device) -> LanguageModel:
    return found.load(device, name=cfg.name, fingerprint=fingerprint, dtype=cfg.dtype, keep=tuple(cfg.keep))


def _parent(cfg: ModelConfig, name: str) -> Source:
    """The float model of a checkpoint: a folder, a hub id, or the name of a file in `conf/model`."""
    preset = CONF_DIR / "model" / f"{name}.yaml"
    if not preset.is_file():
        return from_hub_or_folder(replace(cfg, name=name, parent=None))
    told = OmegaConf.load(preset)
    loaders = {name: loader for name, loader in LOADERS.items() if name != cfg.loader}
    if told.loader not in loaders:
        raise UserError(f"model.parent={name}: is no language model")
    return loaders[told.loader].locate(replace(cfg, name=told.name, loader=told.loader, parent=None))


def check_parent(found: QuantizedFolder, parent: Source, name: str) -> None:
    """Raise UserError for the first difference between the architecture or the tokenizer of a checkpoint and of its parent."""
    assert parent.folder is not None
    own, other = found.config, read_config(parent.folder, f"model.parent={name}")
    for key in UNLIKE:
        if other.get(key) not in (found.model_types if key == "model_type" else (own.get(key),)):
            raise UserError(f"model.parent={name}: has {key}={other.get(key)}, and {found.place} has {own.get(key)}")
    first, second = found.vocabulary(), vocabulary_of(parent.folder)
    if first is None or second is None:
        return
    if unlike := sorted(token for token in first.keys() | second.keys() if first.get(token) != second.get(token)):
        token = unlike[0]
        raise UserError(
            f"model.parent={name}: its tokenizer makes {token!r} the token {second.get(token)}, and that of {found.place}"
            f" {first.get(token)}"
        )
