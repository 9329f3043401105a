"""Input channels of a model's layers, from its architecture alone. A plan can check them before any weight is read."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from sqbench.models.experts import split_experts
from sqbench.quant.access import Widths, kind_of, widths_of

LayerWidths = dict[str, Widths]


def _widths(build: Callable[[], nn.Module]) -> LayerWidths:
    """The widths of a network without weights, and without its output embedding. Empty if it cannot be built; loading says why."""
    from accelerate import init_empty_weights

    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            module = build()
        split_experts(module, outline=True)
    except Exception:  # noqa: BLE001 (code of the model's own may raise anything)
        return {}
    without = getattr(module, "get_output_embeddings", lambda: None)()
    layers = {name: layer for name, layer in module.named_modules() if layer is not without}
    return {name: widths_of(layer) for name, layer in layers.items() if kind_of(layer) or isinstance(layer, nn.Linear | nn.Conv2d)}


@lru_cache(maxsize=8)
def language_widths(folder: Path, fingerprint: str, trust_remote_code: bool, own_head: bool = False) -> LayerWidths:
    """The widths of a Hugging Face causal LM without its output embedding. `fingerprint` renews the cache if files change."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def build() -> nn.Module:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        module: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return module

    return _widths(build)


@lru_cache(maxsize=8)
def timm_widths(architecture: str, image_size: int | None, own_head: bool) -> LayerWidths:
    """The widths of a timm architecture, with or without its classifier. `image_size` is for those built for one size."""
    import timm

    options = {} if image_size is None else {"img_size": image_size}
    without = {} if own_head else {"num_classes": 0}
    return _widths(lambda: timm.create_model(architecture, **without, **options))
