"""Range estimators against brute force."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqbench.quant import ranges
from sqbench.quant.affine import fake_quantize, qparams, round_trip
from sqbench.quant.formats import Format
from sqbench.quant.ranges import Histogram, expected_error, search_edges
from sqbench.quant.statistics import InputStatistics

ASYMMETRIC, SYMMETRIC = Format(bits=4, symmetric=False), Format(bits=4)


def heavy_tailed(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 32, generator=generator)
    x[::100, 3] *= 30
    return x + 0.5


def observed(x: Tensor) -> InputStatistics:
    stats = InputStatistics.empty(x.shape[-1])
    for part in x.split(50):
        stats.update(part)
    return stats


def error(x: Tensor, limits: ranges.Limits, fmt: Format, norm: float = 2.0) -> float:
    return float((fake_quantize(x, qparams(*limits, fmt), fmt) - x).abs().pow(norm).mean())


@pytest.mark.parametrize(
    "fmt", [ASYMMETRIC, SYMMETRIC, Format(bits=3, convention="half_range"), Format(bits=8, symmetric=False)], ids=str
)
@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4])
def test_expected_error_is_the_integral_over_the_density(fmt: Format, norm: float) -> None:
    counts = torch.tensor([3, 0, 5, 9, 20, 7, 0, 1])
    histogram = Histogram.of(counts, -4.0, 4.0)
    lo, hi = torch.tensor([-4.0, -1.0, -2.3]), torch.tensor([4.0, 2.0, 0.7])
    fine = torch.cat(
        [
            left + (torch.arange(20_000) + 0.5) / 20_000 * (right - left)
            for left, right in zip(histogram.left, histogram.right, strict=True)
        ]
    )
    weight = histogram.counts.repeat_interleave(20_000) / histogram.counts.sum() / 20_000
    for index in range(3):
        params = qparams(lo[index].double(), hi[index].double(), fmt)
        brute = ((fake_quantize(fine, params, fmt) - fine).abs().pow(norm) * weight).sum()
        assert expected_error(histogram, lo, hi, fmt, norm)[index].item() == pytest.approx(brute.item(), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=8, max_size=24).filter(any), bits=st.integers(2, 4), symmetric=st.booleans())
def test_exhaustive_search_never_beats_the_histogram_search(counts: list[int], bits: int, symmetric: bool) -> None:
    fmt = Format(bits=bits, symmetric=symmetric)
    histogram = Histogram.of(torch.tensor(counts), -3.0, 3.0)
    lo, hi = search_edges(histogram, fmt)
    found = expected_error(histogram, lo.reshape(1), hi.reshape(1), fmt).item()
    used = [index for index, count in enumerate(counts) if count]
    edges = torch.linspace(-3, 3, len(counts) + 1, dtype=torch.float64).tolist()
    edges = [e for e in edges if min(0, edges[used[0]]) <= e <= max(0, edges[used[-1] + 1])] + [0.0]
    for a, b in itertools.product([e for e in edges if e <= 0], [e for e in edges if e >= 0]):
        if a < b:
            brute = expected_error(
                histogram, torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64), fmt
            ).item()
            assert found <= brute * (1 + 1e-9) + 1e-15, (a, b)


def test_coarse_to_fine_search_is_close_to_exhaustive_on_a_large_histogram() -> None:
    stats = observed(heavy_tailed())
    histogram = Histogram.of(stats.bins, -stats.reach, stats.reach)
    quick = expected_error(histogram, *(x.reshape(1) for x in search_edges(histogram, SYMMETRIC)), SYMMETRIC).item()
    bounds = torch.cat([histogram.left, histogram.right]).abs().unique()
    best = min(expected_error(histogram, -part, part, SYMMETRIC).min().item() for part in bounds.split(200))
    assert quick <= best * 1.01


@pytest.mark.parametrize("fmt", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_searched_ranges_beat_minmax_on_the_data_itself(fmt: Format) -> None:
    x = heavy_tailed()
    stats = observed(x)
    plain = error(x, ranges.minmax(stats, fmt), fmt)
    assert error(x, ranges.histogram(stats, fmt), fmt) < 0.7 * plain
    assert error(x, ranges.mse(stats, fmt), fmt) < 0.7 * plain
    assert error(x, ranges.histogram(stats, fmt), fmt) <= error(x, ranges.mse(stats, fmt), fmt) * 1.02


def test_mse_minimises_its_own_norm() -> None:
    x = heavy_tailed()
    stats = observed(x)
    sharp, flat = ranges.mse(stats, ASYMMETRIC, norm=1.0), ranges.mse(stats, ASYMMETRIC, norm=4.0)
    assert error(x, sharp, ASYMMETRIC, 1.0) < error(x, flat, ASYMMETRIC, 1.0)
    assert error(x, flat, ASYMMETRIC, 4.0) < error(x, sharp, ASYMMETRIC, 4.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_percentile_agrees_with_sorting(percent: float) -> None:
    x = heavy_tailed()
    stats = observed(x)
    width = stats.reach / (len(stats.bins) / 2)
    share = percent / 100
    lo, hi = ranges.percentile(stats, ASYMMETRIC, percent)
    assert (x <= hi - width).float().mean() <= share <= (x <= hi + width).float().mean()
    assert (x >= lo + width).float().mean() <= share <= (x >= lo - width).float().mean()
    lo, hi = ranges.percentile(stats, SYMMETRIC, percent)
    assert (x.abs() <= hi - width).float().mean() <= share <= (x.abs() <= hi + width).float().mean()
    assert lo == -hi


def brute_entropy(counts: Tensor, levels: int) -> int:
    """TensorRT's loop, one threshold at a time."""
    best, where = math.inf, 0
    last = int(counts.nonzero()[-1]) + 1
    for end in range(min(levels, last), last + 1):
        if counts[end - 1] == 0:
            continue
        p = counts[:end].clone()
        p[-1] += counts[end:].sum()
        q = torch.zeros(end, dtype=torch.float64)
        for level in range(levels):
            piece = slice(level * end // levels, (level + 1) * end // levels)
            used = counts[piece] > 0
            if used.any():
                q[piece] = torch.where(used, counts[piece].sum() / used.sum(), torch.zeros((), dtype=torch.float64))
        p, q = p / p.sum(), q / q.sum()
        divergence = float(torch.where(p > 0, p * (p / q).log(), torch.zeros_like(p)).sum())
        if divergence < best - 1e-12:
            best, where = divergence, end
    return where


def test_entropy_agrees_with_the_loop() -> None:
    stats = observed(heavy_tailed())
    half = len(stats.bins) // 2
    counts = (stats.bins[half:] + stats.bins[:half].flip(0)).double()
    for bits in (3, 4):
        expected = brute_entropy(counts, 2 ** (bits - 1)) * stats.reach / half
        _, hi = ranges.entropy(stats, Format(bits=bits))
        assert hi.item() == pytest.approx(min(expected, float(stats.absmax.max())), rel=1e-6)


def test_averaged_ranges() -> None:
    x = heavy_tailed()
    stats, parts = observed(x), x.split(50)
    lo, hi = ranges.mean_minmax(stats, ASYMMETRIC)
    assert hi.item() == pytest.approx(sum(float(part.max()) for part in parts) / len(parts), rel=1e-6)
    assert lo.item() == pytest.approx(sum(float(part.min()) for part in parts) / len(parts), rel=1e-6)
    assert ranges.ema_minmax(stats, ASYMMETRIC)[1] < ranges.minmax(stats, ASYMMETRIC)[1]


ESTIMATORS = [ranges.minmax, ranges.ema_minmax, ranges.mean_minmax, ranges.percentile, ranges.mse, ranges.histogram, ranges.entropy]


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
    searched, plain = round_trip(weight, fmt, ranges.shrink_blocks(weight, fmt)), round_trip(weight, fmt)
    by_group = [(result - weight).square().unflatten(1, (-1, 16)).sum(-1) for result in (searched, plain)]
    assert (by_group[0] <= by_group[1] * (1 + 1e-6)).all()
    assert by_group[0].sum() < 0.97 * by_group[1].sum()
