"""Range estimators against brute force."""

import pytest
import torch
from torch import Tensor

from benchmarks.ranges import ESTIMATORS, observed, shapes, shortfalls
from sqbench.formats.codec import fake_quantize, round_trip, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import Limits, block_range, qparams
from sqbench.ranges import estimators
from sqbench.ranges.mse import Mse

ASYMMETRIC, SYMMETRIC = Format(bits=4, symmetric=False), Format(bits=4)


def heavy_tailed(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 32, generator=generator)
    x[::100, 3] *= 30
    return x + 0.5


def error(x: Tensor, limits: Limits, fmt: Format, norm: float = 2.0) -> float:
    return float((fake_quantize(x, qparams(*limits, fmt), fmt) - x).abs().pow(norm).mean())


AVERAGES = "averages of batches' extremes are inside the data: what is rare is clipped, whatever energy it holds"
EXTREMES = "extremes say nothing of where the values between them are: levels may lie beside the few values that there are"
NARROW = {"two clusters", "two clusters around 0", "integers", "signed integers"}
# (estimator, reason) -> the shapes on which it is more than 10 dB below the best range, because of what it is.
BY_DEFINITION = {
    ("minmax", EXTREMES): NARROW,
    ("percentile", EXTREMES): NARROW,  # 99.999 % of so few values are all of them
    ("ema_minmax", EXTREMES): NARROW,
    ("mean_minmax", EXTREMES): NARROW,
    ("ema_minmax", AVERAGES): {"far outliers", "75 % zeros, long tail"},
    ("mean_minmax", AVERAGES): {"far outliers", "75 % zeros, long tail", "95 % zeros"},
}


@pytest.mark.parametrize("shape", shapes())
def test_every_estimator_is_within_10_db_of_the_best_range_on_data_like_real_tensors(shape: str) -> None:
    """Zeros of a ReLU, outliers, clusters, integers, constants, at 3 to 8 bits, symmetric and not; else the reason is above."""
    for estimate in ESTIMATORS:
        worst = max(shortfalls(shape, estimate).values())
        reasons = [reason for (name, reason), found in BY_DEFINITION.items() if name == estimate.__name__ and shape in found]
        assert (worst > 10) == bool(reasons), (estimate.__name__, worst, reasons)


@pytest.mark.parametrize("fmt", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_searched_ranges_beat_minmax_on_the_data_itself(fmt: Format) -> None:
    x = heavy_tailed()
    stats = observed(x)
    plain = error(x, estimators.minmax(stats, fmt), fmt)
    assert error(x, estimators.histogram(stats, fmt), fmt) < 0.7 * plain
    assert error(x, estimators.mse(stats, fmt), fmt) < 0.7 * plain
    assert error(x, estimators.histogram(stats, fmt), fmt) <= error(x, estimators.mse(stats, fmt), fmt) * 1.02


def test_mse_minimises_its_own_norm() -> None:
    x = heavy_tailed()
    stats = observed(x)
    sharp, flat = estimators.mse(stats, ASYMMETRIC, norm=1.0), estimators.mse(stats, ASYMMETRIC, norm=4.0)
    assert error(x, sharp, ASYMMETRIC, 1.0) < error(x, flat, ASYMMETRIC, 1.0)
    assert error(x, flat, ASYMMETRIC, 4.0) < error(x, sharp, ASYMMETRIC, 4.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_percentile_agrees_with_sorting(percent: float) -> None:
    x = heavy_tailed()
    stats = observed(x)
    width = stats.reach / (len(stats.bins) / 2)
    share = percent / 100
    lo, hi = estimators.percentile(stats, ASYMMETRIC, percent)
    assert (x <= hi - width).float().mean() <= share <= (x <= hi + width).float().mean()
    assert (x >= lo + width).float().mean() <= share <= (x >= lo - width).float().mean()
    lo, hi = estimators.percentile(stats, SYMMETRIC, percent)
    assert (x.abs() <= hi - width).float().mean() <= share <= (x.abs() <= hi + width).float().mean()
    assert lo == -hi


def test_averaged_ranges() -> None:
    x = heavy_tailed()
    stats, parts = observed(x), x.split(50)
    lo, hi = estimators.mean_minmax(stats, ASYMMETRIC)
    assert hi.item() == pytest.approx(sum(float(part.max()) for part in parts) / len(parts), rel=1e-6)
    assert lo.item() == pytest.approx(sum(float(part.min()) for part in parts) / len(parts), rel=1e-6)
    assert estimators.ema_minmax(stats, ASYMMETRIC)[1] < estimators.minmax(stats, ASYMMETRIC)[1]


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "x",
    [torch.zeros(60, 8), torch.full((60, 8), 3.0), -torch.rand(60, 8, generator=torch.Generator().manual_seed(0))],
    ids=["zero", "constant", "negative"],
)
@pytest.mark.parametrize("fmt", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_every_estimator_contains_zero_and_stays_inside_the_data(estimate: object, x: Tensor, fmt: Format) -> None:
    lo, hi = estimate(observed(x), fmt)  # type: ignore[operator]
    assert lo <= 0 <= hi
    bound = x.abs().max() * (1 + 1e-6)
    assert -bound <= lo
    assert hi <= bound
    assert torch.isfinite(fake_quantize(x, qparams(lo, hi, fmt), fmt)).all()


def test_shrinking_weight_blocks_is_never_worse_than_minmax() -> None:
    weight = heavy_tailed()[:64]
    fmt = Format(bits=3, symmetric=False, granularity="group", group_size=16)
    searched, plain = round_trip(weight, fmt, estimators.shrink_blocks(weight, fmt)), round_trip(weight, fmt)
    by_group = [(result - weight).square().unflatten(1, (-1, 16)).sum(-1) for result in (searched, plain)]
    assert (by_group[0] <= by_group[1] * (1 + 1e-6)).all()
    assert by_group[0].sum() < 0.97 * by_group[1].sum()


def brute_ratio(block: Tensor, fmt: Format, norm: float, steps: int) -> float:
    """Of 1/steps, 2/steps, ..., 1 the ratio with the least error, by trying all."""
    lo, hi = block_range(block, fmt)

    def cost(ratio: float) -> float:
        return float((fake_quantize(block, qparams(lo * ratio, hi * ratio, fmt), fmt) - block).abs().pow(norm).sum())

    return min((step / steps for step in range(steps, 0, -1)), key=cost)


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_blocks_get_the_best_ratio_of_the_whole_grid(bits: int, symmetric: bool, norm: float) -> None:
    """Stopping early changes nothing, and neither does what is rounded together."""
    weight = heavy_tailed(3)[:12]
    fmt = Format(bits, symmetric=symmetric, granularity="channel")
    lo, hi = estimators.shrink_blocks(weight, fmt, norm, steps=40)
    low, high = block_range(to_blocks(weight, fmt), fmt)
    for row, block in enumerate(to_blocks(weight, fmt)):
        best = brute_ratio(block.unsqueeze(0), fmt, norm, 40)
        torch.testing.assert_close(torch.stack([lo[row], hi[row]]), best * torch.stack([low[row], high[row]]), rtol=1e-5, atol=0)


ELEMENTS = [
    Format.from_dict({"element": "e2m1", "granularity": "channel"}),
    Format.from_dict({"element": "nf4", "granularity": "channel"}),
    *(
        Format.from_dict({"element": "e2m1", "granularity": "channel", "scale": {"dtype": "e8m0", "rule": rule}})
        for rule in ("floor", "rceil")
    ),
]


@pytest.mark.parametrize("fmt", ELEMENTS, ids=str)
def test_other_elements_get_the_best_ratio_too(fmt: Format) -> None:
    weight = heavy_tailed(3)[:12]
    lo, hi = estimators.shrink_blocks(weight, fmt, 2.0, steps=40)
    found = (fake_quantize(weight, qparams(lo, hi, fmt), fmt) - weight).square().sum(1)
    for row, block in enumerate(weight):
        low, high = block_range(block.unsqueeze(0), fmt)
        best = brute_ratio(block.unsqueeze(0), fmt, 2.0, 40)
        least = (fake_quantize(block.unsqueeze(0), qparams(low * best, high * best, fmt), fmt) - block).square().sum()
        assert float(found[row]) == pytest.approx(float(least), rel=1e-5)


@pytest.mark.parametrize("element", ["e4m3", "e2m3", "e2m1", "nf4"])
@pytest.mark.parametrize("estimate", [estimators.mse, estimators.histogram, estimators.entropy])
def test_static_ranges_of_other_elements(element: str, estimate: estimators.Estimator) -> None:
    """What minimises the error is not worse than min-max. What compares distributions gives a range inside the data."""
    fmt, x = Format.from_dict({"element": element}), heavy_tailed()
    stats = observed(x)
    low, high = estimators.minmax(stats, fmt)
    lo, hi = estimate(stats, fmt)
    assert lo <= 0 <= hi
    assert max(-lo, hi) <= max(-low, high) * (1 + 1e-6)
    if estimate is not estimators.entropy:
        assert error(x, (lo, hi), fmt) <= error(x, (low, high), fmt) * 1.01


def test_weights_are_searched_in_steps_of_a_hundredth_and_where_two_bits_have_their_best_range() -> None:
    weight = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    fmt = Format(bits=2, granularity="tensor")
    _, hi = estimators.shrink_blocks(weight, fmt)
    ratio = float(hi / weight.abs().max())
    assert ratio == pytest.approx(round(100 * ratio) / 100, abs=1e-6)
    # Levels -s, 0 and s for N(0, 1): s = 1.2240 is best for its squared error (Max, 1960, table I).
    assert float(hi) == pytest.approx(1.224, abs=0.06)


def test_mse_passes_its_steps_and_norm_to_weights_too() -> None:
    weight = heavy_tailed()[:4]
    fmt = Format(bits=3, granularity="channel")
    stats = observed(heavy_tailed())
    for steps in (3, 100):
        limits = Mse(norm=2.4, steps=steps).weight_limits("layer", weight, stats, fmt)
        expected = estimators.shrink_blocks(weight, fmt, 2.4, steps)
        assert limits is not None
        assert all(torch.equal(got, want) for got, want in zip(limits, expected, strict=True))
    coarse, fine = (estimators.shrink_blocks(weight, fmt, 2.4, steps)[1] for steps in (3, 100))
    assert not torch.equal(coarse, fine)


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fmt", [ASYMMETRIC, SYMMETRIC, Format(8), Format(8, symmetric=False)], ids=str)
def test_no_estimate_depends_on_the_unit_of_the_data(estimate: estimators.Estimator, fmt: Format) -> None:
    """A power of two moves no value to another bin, and rounds nothing."""
    for name in ("75 % zeros", "integers", "outliers", "zeros and a constant"):
        x = shapes()[name]
        ends = [torch.stack(estimate(observed(x * unit), fmt)) / unit for unit in (1.0, 2.0**-20, 2.0**13)]
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(ends[2], ends[0], rtol=1e-5, atol=0)
