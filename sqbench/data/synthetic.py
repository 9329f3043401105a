"""Calibration inputs that use no data: random tokens and images of noise."""

import torch
from torch import Tensor

from sqbench.config import CalibrationConfig
from sqbench.data.base import Batches, Unseen
from sqbench.data.image_batches import CALIBRATION_BATCH
from sqbench.data.preprocessing import Preprocessing
from sqbench.storage.files import digest


def random_tokens(vocabulary: int, window: int, calibration: CalibrationConfig, prefix: tuple[int, ...] = ()) -> Batches:
    """Windows of random tokens, each after the prefix. All tokens of the vocabulary are equally likely."""
    generator = torch.Generator().manual_seed(calibration.seed)
    drawn = torch.randint(vocabulary, (calibration.windows, window), generator=generator)
    tokens = torch.cat([torch.tensor(prefix, dtype=drawn.dtype).expand(len(drawn), -1), drawn], dim=1)
    batches = Batches(len(tokens), lambda number: tokens[number : number + 1], digest(tokens.tolist()))
    return _given(batches, calibration.windows, calibration)


def noise(preprocessing: Preprocessing, calibration: CalibrationConfig) -> Batches:
    """Images of independent normal pixels, clamped to 0 to 1, with the mean and spread that the model's preprocessing removes."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    count, seed = calibration.images, calibration.seed

    def make(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(digest([seed, number])[:15], 16))
        size = min(CALIBRATION_BATCH, count - number * CALIBRATION_BATCH)
        pixels = mean + std * torch.randn(size, *preprocessing.input_size, generator=generator)
        return preprocessing.normalize((255 * pixels.clamp(0, 1)).round().byte())

    fingerprint = digest(["noise", preprocessing.fingerprint, count, seed])
    return _given(Batches(-(-count // CALIBRATION_BATCH), make, fingerprint), count, calibration)


def _given(batches: Batches, examples: int, calibration: CalibrationConfig) -> Batches:
    """The inputs, which are only for searches if `calibration.source` is `weights`."""
    if calibration.source == "random":
        return batches
    return Unseen(batches.count, batches.make, batches.fingerprint, examples, calibration.seed)
