"""Entropy calibration against a loop over thresholds, codes and bins."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.ranges import observed, shapes
from sqbench.formats.codec import quantize
from sqbench.formats.format import Format
from sqbench.formats.params import qparams
from sqbench.ranges import estimators
from sqbench.ranges.density import Histogram, expected_error
from sqbench.ranges.divergence import least_divergence, without_zeros

# Formats whose thresholds never lie in the middle of a bin, whose cell would then be a matter of rounding.
HALVES = [Format(bits, convention="half_range") for bits in (3, 4, 5)]
CASES = [(shape, fmt) for shape in ("normal", "75 % zeros", "outliers, one side", "two clusters", "negative") for fmt in HALVES]
CASES += [(shape, Format(bits, symmetric=False)) for shape in ("normal", "GELU") for bits in (3, 4, 5)]


def small(x: Tensor, bins: int = 64) -> Histogram:
    """A histogram of few bins."""
    reach = 2.0 ** math.ceil(math.log2(float(x.abs().max())))
    return Histogram.of(torch.histc(x, bins, -reach, reach), -reach, reach)


def brute(histogram: Histogram, low: float, high: float, fmt: Format) -> tuple[float, float]:
    """The definition, one threshold at a time."""
    histogram = without_zeros(histogram)
    counts, centres = histogram.counts.tolist(), (histogram.edges[:-1] + histogram.edges[1:]) / 2
    half, found = len(counts) // 2, []
    one_sided = fmt.symmetric or low == 0 or high == 0
    sides = [index - half + 1 if index >= half else half - index for index, count in enumerate(counts) if count]
    needed = max(min(sides), min(math.ceil(fmt.levels / (1 if one_sided else 2)), max(sides)))
    for end in range(needed, max(sides) + 1):
        lo, hi = max(low, -end * histogram.width), min(high, end * histogram.width)
        inside = [i for i in range(half - end, half + end) if low < float(centres[i]) + histogram.width / 2 and counts[i]]
        p = {i: counts[i] for i in inside}
        p[inside[0]] += sum(counts[: inside[0]])
        p[inside[-1]] += sum(counts[inside[-1] + 1 :])
        limits = torch.tensor(lo, dtype=torch.float64), torch.tensor(hi, dtype=torch.float64)
        codes = quantize(centres, qparams(*limits, fmt), fmt).tolist()
        divergence = sum(counts[i] for i in inside) - sum(p.values())
        for i in inside:
            cell = [j for j in inside if codes[j] == codes[i]]
            divergence += p[i] * math.log(p[i] / (sum(counts[j] for j in cell) / len(cell)))
        error = expected_error(histogram, *(limit.reshape(1) for limit in limits), fmt).item()
        found.append((divergence, error, lo, hi))
    least = min(error for _, error, _, _ in found)
    return min((entry for entry in found if entry[1] <= 4 * least), key=lambda entry: entry[0])[2:]


@pytest.mark.parametrize(("shape", "fmt"), CASES, ids=str)
def test_the_best_threshold_is_that_of_the_loop(shape: str, fmt: Format) -> None:
    x = shapes()[shape]
    histogram, low, high = small(x), min(0.0, float(x.min())), max(0.0, float(x.max()))
    found = least_divergence(histogram, low, high, fmt)
    assert [float(end) for end in found] == pytest.approx(brute(histogram, low, high, fmt), rel=1e-5)


def test_zeros_do_not_move_the_threshold() -> None:
    """0 is a code at any threshold: whether half of the values are zeros, or nearly all."""
    values = shapes()["one side"]
    for fmt in (Format(8, symmetric=False), Format(4), Format(3, symmetric=False)):
        ends = [
            estimators.entropy(observed(torch.cat([values, torch.zeros(len(values) * times, 64)])), fmt)[1] for times in (0, 1, 20)
        ]
        assert ends[1] == pytest.approx(float(ends[0]), rel=1e-6)
        assert ends[2] == pytest.approx(float(ends[0]), rel=1e-6)
        assert ends[0] > 0.15 * values.max()


def test_rare_values_are_clipped_only_while_that_costs_less_than_a_bit() -> None:
    """One value in a thousand at 30 sigma holds half of the energy; five sigma apart, hardly any."""
    far, near = shapes()["outliers"], shapes()["outliers"].clamp(-5, 5)
    for fmt in (Format(8), Format(8, symmetric=False)):
        assert estimators.entropy(observed(far), fmt)[1] > 20
        histogram = Histogram.seen(observed(near))
        assert histogram is not None
        error = [
            expected_error(histogram, *(end.reshape(1) for end in estimate(observed(near), fmt)), fmt).item()
            for estimate in (estimators.entropy, estimators.mse)
        ]
        assert error[0] <= 4.1 * error[1]


def test_values_that_fill_only_the_bins_at_zero_keep_their_extremes() -> None:
    counts = torch.zeros(64)
    counts[31:33] = 5
    low, high = least_divergence(Histogram.of(counts, -1.0, 1.0), -0.01, 0.02, Format(8))
    assert (float(low), float(high)) == (pytest.approx(-0.01), pytest.approx(0.02))
