"""Turn an image into a model's input. The model's own data config decides how, and nothing is guessed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sqbench.storage.files import digest


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise, with timm's meaning of each word (`timm.data.resolve_model_data_config`).

    Attributes:
        input_size: channels, height, width.
        mean, std: per channel, for pixel values from 0 to 1.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @classmethod
    def from_data_config(cls, config: dict[str, Any]) -> "Preprocessing":
        """The preprocessing of a data config that timm resolves for a model."""
        return cls(
            input_size=tuple(config["input_size"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @property
    def mode(self) -> str:
        """PIL's name of the model's colour mode."""
        return "L" if self.input_size[0] == 1 else "RGB"

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        from timm.data import create_transform

        values = {**asdict(self), "normalize": False}
        return create_transform(**values)

    def pixels(self, image: Image.Image) -> Tensor:
        """The resized and cropped image, uint8 [channels, height, width]."""
        return self._transform(image.convert(self.mode))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalised float32 [B, channels, height, width] from uint8 pixels."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    @property
    def fingerprint(self) -> str:
        """sha256 of all attributes."""
        return digest(asdict(self))
