"""An image classifier for the rest of sqbench: a backbone with its preprocessing, and a head."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError
from sqbench.models.base import Model

HEADS = ("own", "probe", "knn")


@torch.no_grad()
def classes_of(module: nn.Module, input_size: tuple[int, int, int], place: str) -> int:
    """The number of classes of a network, from its logits for a black image.

    Args:
        input_size: channels, height, width.
        place: the network's name in errors: a key and its value.

    Raises:
        UserError: the network does not take such images, or returns no logits.
    """
    first = next(module.parameters())
    try:
        logits = module(torch.zeros(1, *input_size, dtype=first.dtype, device=first.device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise UserError(f"{place}: its network does not take an image of {list(input_size)} ({error})") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{place}: its network returns {what} for one image; it must return logits [images, classes]")
    return logits.shape[1]


@dataclass(frozen=True)
class ImageModel(Model):
    """A timm model: `module(images)` are its logits, or the features that a fitted head reads.

    Attributes:
        preprocessing: the preprocessing of its inputs, from timm's data config.
        classes: outputs of its own classifier; 0 for a backbone without one.
        head: a fitted head on the features, which stays in float; None means the module's own classifier.
        head_fingerprint: sha256 of the data and the method that the head was fitted with.
    """

    kind: ClassVar[str] = "images"

    preprocessing: Preprocessing = None  # type: ignore[assignment]  # dataclasses want a default after those of Model
    classes: int = 0
    head: nn.Module | None = None
    head_fingerprint: str = ""

    @property
    def prediction_fingerprint(self) -> str:
        """The sha256 of the weights, followed by that of the head."""
        return f"{self.fingerprint}{self.head_fingerprint}"

    def example(self) -> Tensor:
        """Two images of noise, [2, channels, height, width]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, *self.preprocessing.input_size, generator=generator).to(self.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [images, classes] of normalised images."""
        outputs = self.body(inputs)
        return outputs if self.head is None else self.head(outputs)

    def body(self, inputs: Tensor) -> Tensor:
        """The module's own output: logits, or features [images, width] under a fitted head."""
        parameter = next(self.module.parameters())
        return self.module(inputs.to(parameter.device, parameter.dtype))
