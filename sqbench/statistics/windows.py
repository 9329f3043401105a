"""The columns that a layer multiplies with its weight: channels, or the pixels of a convolution's window."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from sqbench.quant.access import channels_last, channels_of, kind_of
from sqbench.statistics.base import Columns

Window = tuple[object, ...]


def window_of(layer: nn.Module) -> Window:
    """What decides which columns a layer reads of its input. Layers with equal windows share second moments. () if linear."""
    if not isinstance(layer, nn.Conv2d):
        return ()
    kind = kind_of(layer)
    fields = (layer.kernel_size, layer.stride, layer.dilation, layer.padding, layer.padding_mode, layer.groups)
    return (*fields, kind is not None and kind.pads)


def gram_shape(layer: nn.Module) -> tuple[int, int]:
    """The groups, and the columns of each, of a layer's second moments."""
    if not isinstance(layer, nn.Conv2d):
        return 1, channels_of(layer)
    height, width = layer.kernel_size
    return layer.groups, layer.in_channels // layer.groups * height * width


def columns_of(layer: nn.Module, x: Tensor) -> Columns | None:
    """The columns of an input x of a layer. None if they are its channels."""
    return partial(_unfolded, layer, x) if isinstance(layer, nn.Conv2d) else None


def _unfolded(layer: nn.Conv2d, x: Tensor) -> Iterator[Tensor]:
    """[groups, places, columns] of every image: an unfolded batch of images would be many times as large as the batch."""
    for image in x.float().split(1):
        padded = _padded(layer, image)
        patches = unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)  # [1, C h w, places]
        yield patches.view(*gram_shape(layer), -1).transpose(1, 2)


def _padded(layer: nn.Conv2d, image: Tensor) -> Tensor:
    """An image [1, C, H, W] with the pixels that a convolution adds around it."""
    kind = kind_of(layer)
    if kind is None or not kind.pads:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return pad(image, layer._reversed_padding_repeated_twice, mode)
    sides: list[int] = []  # of the last axis first, as `pad` takes them
    for size, kernel, stride, dilation in zip(
        reversed(image.shape[2:]), reversed(layer.kernel_size), reversed(layer.stride), reversed(layer.dilation), strict=True
    ):
        missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return pad(image, sides)


def observed(layer: nn.Module, x: Tensor) -> tuple[Tensor, Columns | None]:
    """A layer's input as statistics take it: [..., channels], and its columns."""
    return channels_last(layer, x), columns_of(layer, x)
