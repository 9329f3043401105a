"""The search for the range of least squared error, against exhaustive search, fine grids and torch's observer."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.ranges import against_observer, heavy_tailed, observed
from sqbench.formats.format import Format
from sqbench.ranges import estimators
from sqbench.ranges.density import Histogram, expected_error
from sqbench.ranges.search import search

FORMATS = [Format(bits, symmetric=symmetric) for bits in range(2, 9) for symmetric in (True, False)]


def cost(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format) -> float:
    return expected_error(histogram, lo.reshape(1), hi.reshape(1), fmt).item()


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=8, max_size=24).filter(any), fmt=st.sampled_from(FORMATS))
def test_exhaustive_search_over_edges_never_finds_a_better_range(counts: list[int], fmt: Format) -> None:
    histogram = Histogram.of(torch.tensor(counts), -3.0, 3.0)
    edges = histogram.edges.tolist()
    used = [index for index, count in enumerate(counts) if count]
    low, high = min(0.0, edges[used[0]]), max(0.0, edges[used[-1] + 1])
    lo, hi = search(histogram, low, high, fmt)
    assert low * (1 + 1e-6) <= lo <= 0 <= hi <= high * (1 + 1e-6) or fmt.symmetric
    found = cost(histogram, lo, hi, fmt)
    inside = [edge for edge in {*edges, 0.0} if low <= edge <= high]
    pairs = [(a, b) for a, b in itertools.product(inside, inside) if a <= 0 <= b and a < b]
    brute = expected_error(histogram, *torch.tensor(pairs).T, fmt)
    assert found <= brute.min().item() * (1 + 1e-5) + 1e-12


def grid(low: float, high: float, fmt: Format, steps: int = 60) -> tuple[Tensor, Tensor]:
    """`steps` x `steps` ranges inside the data; as many for symmetric formats."""
    if fmt.symmetric:
        hi = max(-low, high) * torch.arange(1, steps**2 + 1) / steps**2
        return -hi, hi
    parts = torch.linspace(0, 1, steps)
    lo, hi = torch.cartesian_prod(low * parts, high * parts).T
    return lo[lo < hi], hi[lo < hi]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_no_fine_grid_finds_a_better_range_of_heavy_tails(fmt: Format) -> None:
    """The first coarse stage merged bins that hold little, and looked closer at the wrong place."""
    for name, x in itertools.islice(heavy_tailed(), 5):
        stats = observed(x)
        histogram = Histogram.seen(stats)
        assert histogram is not None
        best = expected_error(histogram, *grid(float(x.min()), float(x.max()), fmt), fmt).min().item()
        assert cost(histogram, *estimators.histogram(stats, fmt), fmt) <= best * (1 + 1e-6), name


def test_torchs_observer_is_beaten_on_heavy_tails() -> None:
    """At 8 bits, the width that it is made for: 60 cases, on the data themselves rather than on either histogram."""
    ratios = dict(against_observer())
    assert len(ratios) == 60
    assert max(ratios.values()) < 1 + 1e-4, max(ratios, key=lambda case: ratios[case])
    assert sum(ratios.values()) / 60 < 0.97


def test_an_empty_range_never_wins() -> None:
    """Its scale would be 1: just right for integers, and only in this unit."""
    counts = torch.zeros(4096)
    counts[2048::128] = torch.tensor([900, 800, 700, 500, 300, 200, 100, 50, 20, 10, 5, 2, 1, 1, 1, 1.0])
    histogram = Histogram.of(counts, -16.0, 16.0)
    for fmt in FORMATS:
        lo, hi = search(histogram, 0.0, 15.0, fmt)
        assert hi - lo > 2, fmt


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.5), (-2.5, 0.0)])
def test_a_side_without_values_gets_no_codes(low: float, high: float) -> None:
    counts = torch.zeros(64)
    counts[33 : 58 if high else 0] = 5
    counts[0 if high else 7 : 0 if high else 32] = 5
    lo, hi = search(Histogram.of(counts, -3.0, 3.0), low, high, Format(4, symmetric=False))
    assert (lo, hi) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))
    assert 0 in (lo, hi)
