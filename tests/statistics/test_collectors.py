"""Collectors one by one and together: the same bits, and the matrices that float64 gives."""

import pytest
import torch
from labs import Lab
from torch import Tensor, nn

from sqbench.calibration import collect
from sqbench.errors import UserError
from sqbench.quant.access import weight_of
from sqbench.statistics import ALWAYS, COLLECTORS, EVERYDAY, LOST, complete
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.windows import columns_of, gram_shape, window_of


def batches(count: int = 6, channels: int = 48, shape: tuple[int, ...] = (2, 40)) -> list[Tensor]:
    """Correlated channels of very different sizes, and a range that grows on the way."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(channels, channels, generator=generator) * torch.logspace(-2, 1, channels)
    return [torch.randn(*shape, channels, generator=generator) @ mix * (1 + number) for number in range(count)]


def collected(parts: list[Tensor], names: frozenset[str] | set[str] = frozenset(COLLECTORS)) -> InputStatistics:
    stats = InputStatistics.empty(parts[0].shape[-1], names=names)
    for part in parts:
        stats.update(part)
    return stats


def same(one: InputStatistics, other: InputStatistics) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def exact(parts: list[Tensor]) -> Tensor:
    x = torch.cat([part.flatten(0, -2) for part in parts]).double()
    return x.t() @ x


def error(found: Tensor, truth: Tensor) -> float:
    """The largest error of an entry, as a share of its bound |x_i| |x_j|."""
    size = truth.diagonal(dim1=-2, dim2=-1).sqrt()
    return float(((found - truth).abs() / (size.unsqueeze(-1) * size.unsqueeze(-2)).clamp(min=1e-30)).max())


@pytest.mark.parametrize("shape", [(2, 40), (3, 5, 5), (1, 1)])
def test_one_pass_with_all_is_several_with_parts(shape: tuple[int, ...]) -> None:
    parts = batches(shape=shape)
    whole = collected(parts)
    assert whole.collectors.keys() == COLLECTORS.keys()
    apart = InputStatistics({})
    for name in COLLECTORS:
        apart = apart.extended(collected(parts, {name}))
    assert same(whole, apart)


def test_the_full_matrix_is_that_of_float64_and_has_the_blocks_on_its_diagonal() -> None:
    parts = batches()
    stats = collected(parts)
    assert stats.gram.matrix.shape == (1, 48, 48)
    assert stats.gram.count == stats.tokens == 6 * 80
    assert error(stats.gram.matrix[0], exact(parts)) < 1e-6
    width = stats.blocks.shape[1]
    assert width == 16
    diagonal = torch.stack([stats.gram.matrix[0, at : at + width, at : at + width] for at in range(0, 48, width)])
    assert error(stats.blocks, diagonal.double()) < 1e-6


def test_scaled_is_exact_where_it_says_so() -> None:
    parts, scale = batches(), torch.logspace(-1, 1, 48)
    stats, direct = collected(parts).scaled(scale), collected([part / scale for part in parts])
    assert stats.collectors.keys() == COLLECTORS.keys() - stats.lost
    assert stats.lost == {"histogram", "averages"}
    assert stats.lost == LOST
    for name in ("low", "high", "sum", "abs_sum", "rows"):
        torch.testing.assert_close(getattr(stats, name), getattr(direct, name), rtol=1e-5, atol=1e-4)
    assert stats.gram.count == direct.gram.count
    assert error(stats.gram.matrix[0], direct.gram.matrix[0].double()) < 2e-6


def test_joined_matrices_are_those_of_both_tensors() -> None:
    one, two = batches(), [part * 3 for part in batches(3)]
    joined = collected(one).joined(collected(two))
    assert joined.gram.count == (6 + 3) * 80
    assert error(joined.gram.matrix[0], exact(one + two)) < 1e-6


LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "padded": nn.Conv2d(4, 6, 3, padding=1, stride=2),
    "wide": nn.Conv2d(4, 6, (3, 5), padding=(0, 2), dilation=(2, 1)),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "pointwise": nn.Conv2d(4, 6, 1, stride=2),
    "same": nn.Conv2d(4, 6, 4, padding="same"),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [*LAYERS, "tensorflow"])
def test_columns_of_a_convolution_times_its_weight_are_its_output(name: str) -> None:
    from timm.layers import create_conv2d

    layer = create_conv2d(4, 6, 3, stride=2, padding="same") if name == "tensorflow" else LAYERS[name]
    x = torch.randn(3, 4, 9, 10, generator=torch.Generator().manual_seed(0))
    columns = columns_of(layer, x)
    assert columns is not None
    parts = list(columns())
    groups, width = gram_shape(layer)
    assert all(part.shape[::2] == (groups, width) for part in parts)
    weight = weight_of(layer).unflatten(0, (groups, -1))
    with torch.no_grad():
        bias = layer.bias.detach().view(1, groups, 1, -1).transpose(1, 2) if layer.bias is not None else 0.0
        products = torch.stack([part @ weight.transpose(1, 2) for part in parts]).transpose(1, 2)  # [images, places, groups, out]
        products = products + bias
        torch.testing.assert_close(products.flatten(2).transpose(1, 2), layer(x).flatten(2), rtol=1e-4, atol=1e-5)


def test_convolutions_have_a_matrix_for_each_group(cnn: Lab) -> None:
    module, inputs = cnn.model.module, next(cnn.test.batches(8)).images
    found = collect(module, cnn.model.body, cnn.model.topology.sites, inputs, needs={"gram"})
    assert {site: tuple(one.gram.matrix.shape) for site, one in found.inputs.items()} == {
        "conv1": (1, 9, 9),
        "conv2": (1, 72, 72),
        "fc": (1, 144, 144),
    }
    places = found.inputs["conv1"].gram.count
    assert places == 8 * 12 * 12
    layer = module.get_submodule("conv1")
    with torch.no_grad():
        energy = (layer(inputs)).double().square().sum((0, 2, 3))
    found.check_window(module, "conv1", "conv1")
    matrix = found.inputs["conv1"].gram.matrix[0].double()
    weight = weight_of(layer).double()
    torch.testing.assert_close(torch.einsum("oi,ij,oj->o", weight, matrix, weight), energy, rtol=1e-4, atol=1e-4)


def test_another_window_of_the_same_tensor_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 8, 3, padding=1))
    found = collect(module, module[0], ["0"], torch.randn(2, 4, 6, 6), needs={"gram"})
    found.check_window(module, "0", "2")
    assert found.inputs["0"].gram.matrix.shape == (1, 36, 36)
    assert window_of(module[0]) != window_of(module[1])
    with pytest.raises(UserError, match=r"1: reads the same tensor as 0 through another window .*collected for 0 only"):
        found.check_window(module, "0", "1")


def test_a_scale_of_channels_reaches_all_pixels_of_a_window() -> None:
    layer, scale = LAYERS["grouped"], torch.tensor([0.5, 1.0, 2.0, 4.0])
    x = torch.randn(3, 4, 9, 10)

    def gram(x: Tensor) -> InputStatistics:
        stats = InputStatistics.empty(4, names={"gram"})
        stats.update(x.movedim(1, -1), columns=columns_of(layer, x))
        return stats

    scaled, direct = gram(x).scaled(scale), gram(x / scale.view(-1, 1, 1))
    torch.testing.assert_close(scaled.gram.matrix, direct.gram.matrix, rtol=1e-4, atol=1e-4)


def test_needs_are_names_of_collectors() -> None:
    assert complete(None) == EVERYDAY
    assert complete(()) == ALWAYS
    assert complete("gram") == ALWAYS | {"gram"}
    with pytest.raises(UserError, match=r"needs=blokcs: did you mean blocks\? known: averages, blocks, extremes, gram"):
        complete({"blokcs"})
