"""What a range costs under a histogram, against sums over its values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqbench.formats.codec import fake_quantize
from sqbench.formats.format import Format
from sqbench.formats.params import qparams
from sqbench.ranges.density import Histogram, expected_error, squared_errors

FORMATS = [
    *(Format(4), Format(4, symmetric=False), Format(3, convention="half_range"), Format(8, symmetric=False)),
    *(Format.from_dict({"element": element}) for element in ("e4m3", "e3m2", "e2m1", "nf4")),
    Format.from_dict({"element": "e2m1", "scale": {"dtype": "e8m0", "rule": "floor"}}),
]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4])
def test_expected_error_is_the_integral_over_the_density(fmt: Format, norm: float) -> None:
    counts = torch.tensor([3, 0, 5, 9, 20, 7, 0, 1])
    histogram = Histogram.of(counts, -4.0, 4.0)
    lo, hi = torch.tensor([[-4.0, -1.0, -2.3], [4.0, 2.0, 0.7]], dtype=torch.float64)
    fine = torch.cat([left + (torch.arange(20_000) + 0.5) / 20_000 for left in histogram.edges[:-1]])
    weight = histogram.counts.repeat_interleave(20_000) / histogram.counts.sum() / 20_000
    for index in range(3):
        params = qparams(lo[index], hi[index], fmt)
        brute = ((fake_quantize(fine, params, fmt) - fine).abs().pow(norm) * weight).sum()
        assert expected_error(histogram, lo, hi, fmt, norm)[index].item() == pytest.approx(brute.item(), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=24).filter(any),
    ends=st.lists(st.tuples(st.floats(-5, 0), st.floats(0, 5)).filter(lambda e: e[1] - e[0] > 1e-3), min_size=1, max_size=5),
    fmt=st.sampled_from(FORMATS),
    low=st.floats(-4, 4),
)
def test_the_quick_squared_error_is_the_expected_one(
    counts: list[int], ends: list[tuple[float, float]], fmt: Format, low: float
) -> None:
    """Inside and outside the data, and for histograms that do not hold 0."""
    histogram = Histogram.of(torch.tensor(counts), low, low + 3)
    lo, hi = torch.tensor(ends, dtype=torch.float64).T
    quick, slow = squared_errors(histogram, lo, hi, fmt), expected_error(histogram, lo, hi, fmt)
    torch.testing.assert_close(quick, slow, rtol=1e-8, atol=1e-11)
