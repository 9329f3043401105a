"""Any timm architecture with given weights: the check of its weights, its image sizes, and the preprocessing of its inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from sqbench.config import ModelConfig
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError
from sqbench.models.base import Source
from sqbench.models.extent import Extent, of_images
from sqbench.models.image import ImageModel
from sqbench.models.outline import timm_widths
from sqbench.models.state_dict import differences
from sqbench.storage.files import digest


@dataclass(frozen=True)
class Weights:
    """Tensors that are read later.

    Attributes:
        fingerprint: sha256 of the file they come from.
        read: loads the tensors: name -> tensor.
        place: their name in errors: a key and its value.
    """

    fingerprint: str
    read: Callable[[], dict[str, Tensor]]
    place: str


def pretrained_cfg(name: str, key: str = "model.name") -> Any:
    """timm's entry for an architecture, or for `architecture.tag`: preprocessing, classifier, place on the hub.

    Raises:
        UserError: timm has no such architecture, or the architecture has no such tag.
    """
    import timm
    from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"{', '.join(close)} are close" if close else "timm.list_models() lists them"
        raise UserError(f"{key}={name}: no architecture that timm has; {hint}")
    try:
        return get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        names = list(get_arch_pretrained_cfgs(name))
        close = get_close_matches(name, names, n=4, cutoff=0.0)
        raise UserError(f"{key}={name}: timm has other weights of this architecture; use {', '.join(close)}") from error


def describe(cfg: ModelConfig, architecture: str, weights: Weights) -> Source:
    """The source of a timm model. Its fingerprint covers weights, architecture and preprocessing (with the image size)."""
    from timm.data import resolve_data_config

    config = pretrained_cfg(architecture)
    size = {} if cfg.image_size is None else {"input_size": (config.input_size[0], cfg.image_size, cfg.image_size)}
    preprocessing = Preprocessing.from_data_config(resolve_data_config(size, pretrained_cfg=config.to_dict()))
    fingerprint = digest([weights.fingerprint, architecture, preprocessing.fingerprint])
    return Source(
        fingerprint,
        partial(load, cfg, architecture, weights, preprocessing, fingerprint),
        widths=partial(timm_widths, architecture, size_option(config, cfg.image_size).get("img_size")),
        extent=partial(_extent, architecture, cfg.image_size, cfg.head, preprocessing.input_size),
    )


@cache
def _extent(architecture: str, size: int | None, head: str, input_size: tuple[int, int, int]) -> Extent | None:
    """The extent of the network without its weights. It is cached because all points of a sweep ask for it."""
    import timm

    classes = {} if head == "own" else {"num_classes": 0}
    options = {**classes, **size_option(pretrained_cfg(architecture), size)}
    return of_images(lambda: timm.create_model(architecture, **options), input_size)


def load(
    cfg: ModelConfig, architecture: str, weights: Weights, preprocessing: Preprocessing, fingerprint: str, device: torch.device
) -> ImageModel:
    """Build the network, in eval mode and without gradients.

    Raises:
        UserError: the weights are of another network, or the network does not take images of `model.image_size`.
    """
    with torch.random.fork_rng(devices=[]):  # timm draws weights before it loads them
        if cfg.image_size is not None:
            check_size(architecture, cfg.image_size)
        module = with_weights(architecture, weights, cfg.image_size)
    module.eval().requires_grad_(False).to(device, getattr(torch, cfg.dtype))
    return ImageModel(module, cfg.name, fingerprint, tuple(cfg.keep), preprocessing=preprocessing, classes=module.num_classes)


def size_option(config: Any, size: int | None) -> dict[str, int]:
    """timm's option for an image size. Networks of a fixed size (ViTs, Swins) are built for it. Others take no option."""
    return {"img_size": size} if size is not None and config.fixed_input_size else {}


def with_weights(architecture: str, weights: Weights, size: int | None = None) -> Any:
    """The network with these weights, read through timm's filter for foreign checkpoints. Position embeddings are resampled.

    Raises:
        UserError: the weights are of another network.
    """
    import timm

    tensors, config = weights.read(), pretrained_cfg(architecture)
    if not tensors:
        raise UserError(f"{weights.place}: holds no tensors")
    for head in _heads(config, tensors):
        overlay = {"state_dict": tensors, **head}
        try:
            module = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **size_option(config, size))
        except (RuntimeError, KeyError, AssertionError, ValueError, AttributeError) as error:
            reason = error
            continue
        module.pretrained_cfg.pop("state_dict")  # a second copy of all weights
        return module
    plain = timm.create_model(architecture, **size_option(config, size)).state_dict()
    raise UserError(f"{weights.place}: no weights of {architecture}: {differences(plain, tensors) or reason}")


def _heads(config: Any, tensors: dict[str, Tensor]) -> Iterator[dict[str, int]]:
    """Yield the options for a checkpoint's number of classes: the rows of its classifier, or else timm's number, then 0."""
    names = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    rows = {len(tensors[f"{name}.weight"]) for name in names if f"{name}.weight" in tensors}
    offset = config.label_offset or 0  # rows before the first class, in weights that came from TensorFlow
    if len(rows) == 1 and rows != {config.num_classes + offset}:
        yield {"num_classes": rows.pop(), "label_offset": 0}
        return
    yield {"num_classes": config.num_classes}
    yield {"num_classes": 0}


def check_size(architecture: str, size: int) -> None:
    """Raise UserError if a network cannot take square images of `size` pixels. The error names sizes that work."""
    step = _patch(architecture)
    if _takes(architecture, size, step):
        return
    step = step or 32
    below = [step * count for count in range(size // step, 0, -1)][:8]
    above = [step * (size // step + count) for count in range(1, 9)]
    works = [next((other for other in sizes if _takes(architecture, other, step)), None) for sizes in (below, above)]
    own = pretrained_cfg(architecture).input_size[-1]
    listed = " or ".join(str(other) for other in works if other is not None) or str(own)
    raise UserError(f"model.image_size={size}: {architecture} does not take it; use {listed}")


def _patch(architecture: str) -> int | None:
    """The side of the patches that a transformer cuts an image into. None for a network without patches."""
    import timm

    size = getattr(getattr(timm.create_model(architecture), "patch_embed", None), "patch_size", None)
    return max(size) if isinstance(size, tuple | list) else size


@torch.no_grad()
def _takes(architecture: str, size: int, patch: int | None) -> bool:
    """Whether the network runs on images of this size without cutting off their edges."""
    import timm

    if size < 1 or (patch and size % patch):
        return False
    config = pretrained_cfg(architecture)
    try:
        module = timm.create_model(architecture, **size_option(config, size)).eval()
        module(torch.zeros(1, config.input_size[0], size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):
        return False
    return True
