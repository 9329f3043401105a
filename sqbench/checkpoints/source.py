"""The source of a quantized checkpoint, and of the float model that it is compared with."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

from sqbench.checkpoints.folder import QuantizedFolder
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
    folder, place = Path(cfg.name).expanduser(), f"model.name={cfg.name}"
    if not folder.is_dir():
        raise UserError(f"{place}: no such folder (from {Path.cwd()}); model=checkpoint reads local folders")
    found = QuantizedFolder.of(folder, place)
    files = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    own = digest({path.name: known_digest(path) for path in files})
    load = partial(_load, found, cfg, own)
    quantized = Quantized(own, load, found.scheme, parent=cfg.parent is not None)
    if cfg.parent is None:
        return Source(own, load, None, context_of(found.config), quantized=quantized)
    parent = _parent(cfg, cfg.parent)
    check_parent(found, parent, cfg.parent)
    return replace(parent, quantized=quantized)


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
        if own.get(key) != other.get(key):
            raise UserError(f"model.parent={name}: has {key}={other.get(key)}, and {found.place} has {own.get(key)}")
    tokenizers = [folder / "tokenizer.json" for folder in (found.folder, parent.folder)]
    if all(path.is_file() for path in tokenizers):
        first, second = map(_vocabulary, tokenizers)
        if unlike := sorted(token for token in first.keys() | second.keys() if first.get(token) != second.get(token)):
            token = unlike[0]
            raise UserError(
                f"model.parent={name}: its tokenizer makes {token!r} the token {second.get(token)}, and that of {found.place}"
                f" {first.get(token)}"
            )


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab()
    return found
