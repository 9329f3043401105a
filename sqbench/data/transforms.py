"""Changes of a model's own preprocessing by name: `data.transform`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError, known

KEY = "data.transform"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # PIL's, as timm names them
CROP_MODES = ("center", "squash", "border")  # timm's


@dataclass(frozen=True)
class Transform:
    """What is given of it replaces that part of the model's own preprocessing.

    Attributes:
        resize: pixels of the shorter side before the crop.
        crop: pixels of the side of the square that is cut out. The network must take images of this size.
        crop_mode, interpolation: timm's words.
        mean, std: per channel, for pixel values from 0 to 1.
    """

    resize: int | None = None
    crop: int | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, told: Any) -> "Transform":
        """The changes that `data.transform` names. null names none.

        Raises:
            UserError: a word is unknown, or its value cannot work for any model.
        """
        if not isinstance(told, Mapping | None):
            raise UserError(f"{KEY}={told}: must be null, or names and values as in {{resize: 256, crop: 224}}")
        words = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for word, value in (told or {}).items():
            if word not in words:
                raise UserError(f"{KEY}.{word}: {known(str(word), words)}")
            values[word] = CHECKS[word](value, f"{KEY}.{word}={value}")
        return cls(**values)

    def about(self) -> dict[str, Any]:
        """The given parts, as plain data."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def applied(self, own: Preprocessing) -> Preprocessing:
        """The model's preprocessing with these changes.

        Raises:
            UserError: they do not fit the network's images.
        """
        channels, height, width = own.input_size
        if self.crop is not None and (height, width) != (self.crop, self.crop):
            raise UserError(f"{KEY}.crop={self.crop}: the network takes {height} x {width}; use model.image_size={self.crop}, too")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise UserError(f"{KEY}.{name}={list(values)}: must have a number for each of the {channels} channels")
        plain = {name: value for name, value in self.about().items() if name not in ("resize", "crop")}
        changed = replace(own, **plain)
        if self.resize is None:
            return changed
        if height != width or changed.crop_mode != "center":
            raise UserError(f"{KEY}.resize={self.resize}: must be left out; it is for square images that are cut at the center")
        if self.resize < height:
            raise UserError(f"{KEY}.resize={self.resize}: must be {height} or more, the size that is cut out of it")
        return replace(changed, crop_pct=share_of(height, self.resize))


def share_of(crop: int, resize: int) -> float:
    """The `crop_pct` by which timm resizes the shorter side to exactly `resize` pixels. timm cuts off the fraction of a pixel."""
    share = crop / resize
    while math.floor(crop / share) < resize:
        share = math.nextafter(share, 0)
    return share


def _pixels(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{place}: must be a number of pixels")
    return value


def _numbers(value: Any, place: str) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or not value or not all(_finite(one) for one in value):
        raise UserError(f"{place}: must be a list with a number for each channel, as in [0.5, 0.5, 0.5]")
    return tuple(float(one) for one in value)


def _spreads(value: Any, place: str) -> tuple[float, ...]:
    found = _numbers(value, place)
    if min(found) <= 0:
        raise UserError(f"{place}: must be numbers above 0, because pixels are divided by them")
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(names: Sequence[str], value: Any, place: str) -> str:
    if value not in names:
        raise UserError(f"{place}: {known(str(value), names)}")
    return str(value)


CHECKS = {
    "resize": _pixels,
    "crop": _pixels,
    "crop_mode": lambda value, place: _one_of(CROP_MODES, value, place),
    "interpolation": lambda value, place: _one_of(INTERPOLATIONS, value, place),
    "mean": _numbers,
    "std": _spreads,
}
