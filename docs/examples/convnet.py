"""A model of your own: a network that you define, with weights from a file.

python docs/examples/convnet.py --config-dir docs/examples/conf model=convnet model.checkpoint=convnet.safetensors method=minmax
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from sqbench.config import ModelConfig
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError
from sqbench.models import LOADERS, Loader, Source
from sqbench.models.image import ImageModel
from sqbench.storage.files import known_digest

DIGITS = Preprocessing(input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,))


def build() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*block(1, 8), *block(8, 16), nn.Flatten(), nn.Linear(16 * 7 * 7, 10))


def locate(cfg: ModelConfig) -> Source:
    """Find and fingerprint the file; load it later, if a point needs it."""
    if cfg.checkpoint is None:
        raise UserError("model.checkpoint=null: convnet needs a .safetensors file")
    fingerprint = known_digest(Path(cfg.checkpoint))

    def load(device: torch.device) -> ImageModel:
        module = build()
        module.load_state_dict(load_file(cfg.checkpoint))
        module.eval().requires_grad_(False).to(device)
        return ImageModel(module, cfg.name, fingerprint, tuple(cfg.keep), preprocessing=DIGITS, classes=10)

    return Source(fingerprint, load)


LOADERS["convnet"] = Loader("images", locate)

if __name__ == "__main__":
    from sqbench.run import main

    main()
