"""Any torchvision classifier: its architecture, its published weights, and the preprocessing that belongs to them."""

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from sqbench import planning
from sqbench.config import ModelConfig
from sqbench.data.preprocessing import Preprocessing
from sqbench.data.transforms import share_of
from sqbench.errors import UserError, known
from sqbench.models.base import Source
from sqbench.models.extent import of_images
from sqbench.models.image import ImageModel, classes_of
from sqbench.models.state_dict import put, read_tensors
from sqbench.storage.files import digest, known_digest


def from_torchvision(cfg: ModelConfig) -> Source:
    """A torchvision classifier (`model.name`, for example `resnet50` or `resnet50.IMAGENET1K_V1`).

    Weights come from `model.checkpoint`, else torchvision downloads them once. Preprocessing is that of the published weights.

    Raises:
        UserError: torchvision has no such classifier or no such weights, or the weights are not there.
    """
    architecture, _, tag = cfg.name.partition(".")
    weights = _weights(architecture, tag, cfg.name)
    file = _file(cfg, weights)
    preprocessing = _preprocessing(weights.transforms(), cfg.image_size)
    fingerprint = digest([known_digest(file), architecture, preprocessing.fingerprint])
    extent = partial(of_images, partial(_build, architecture), preprocessing.input_size)
    return Source(fingerprint, partial(_load, cfg, architecture, file, preprocessing, fingerprint), extent=extent)


def _weights(architecture: str, tag: str, name: str) -> Any:
    """torchvision's entry for published weights."""
    from torchvision import models

    names = models.list_models(module=models)
    if architecture not in names:
        raise UserError(f"model.name={name}: {known(architecture, names)}")
    found = models.get_model_weights(architecture)
    if tag and tag not in found.__members__:
        raise UserError(f"model.name={name}: {known(tag, found.__members__)}")
    return found[tag] if tag else found.DEFAULT


def _file(cfg: ModelConfig, weights: Any) -> Path:
    """The file of the weights, downloaded if necessary. Its name holds the first digits of its sha256, which torch checks."""
    if cfg.checkpoint is not None:
        return Path(cfg.checkpoint)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not file.is_file():
        planning.before("its model is downloaded first")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), file.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.name={cfg.name}: {file.name} is not there, and cannot be downloaded ({error}); use model.checkpoint=FILE"
            ) from error
    return file


def _preprocessing(transforms: Any, size: int | None) -> Preprocessing:
    """torchvision's `ImageClassification` in the words of timm's data config."""
    (crop,), (resized,) = transforms.crop_size, transforms.resize_size
    size = size or crop
    return Preprocessing(
        (len(transforms.mean), size, size),
        tuple(transforms.mean),
        tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        crop_pct=share_of(crop, resized),
    )


def _build(architecture: str) -> nn.Module:
    from torchvision import models

    module: nn.Module = models.get_model(architecture, weights=None)
    return module


def _load(
    cfg: ModelConfig, architecture: str, file: Path, preprocessing: Preprocessing, fingerprint: str, device: torch.device
) -> ImageModel:
    """Build the network, in eval mode and without gradients. Raises UserError if the weights are of another network."""
    place = f"model.checkpoint={cfg.checkpoint}" if cfg.checkpoint else f"model.name={cfg.name}"
    with torch.random.fork_rng(devices=[]):  # torchvision draws weights before they are loaded
        module = _build(architecture)
    put(read_tensors(file, place), module, place)
    module.eval().requires_grad_(False).to(device, getattr(torch, cfg.dtype))
    classes = classes_of(module, preprocessing.input_size, f"model.name={cfg.name}")
    return ImageModel(module, cfg.name, fingerprint, tuple(cfg.keep), preprocessing=preprocessing, classes=classes)
