"""What tests and intervals promise, counted over simulated comparisons. Changes by window of real points: skew within 0.8."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sqbench.comparison import Difference, mean_difference, perplexity_difference, proportion_difference

TIMES = 1000
FEW = {"resamples": 1000}
Simulate = Callable[[np.random.Generator], Difference]


def within_chance(count: int, share: float, deviations: float = 3.5) -> bool:
    """Whether so many of TIMES are what this share gives, within binomial error."""
    return abs(count - TIMES * share) <= deviations * math.sqrt(TIMES * share * (1 - share))


def windows(count: int, change: float = 0.0) -> Simulate:
    """Windows that differ ten times more from each other than the models do on each."""

    def one(rng: np.random.Generator) -> Difference:
        nll = rng.normal(2.7, 0.25, count)
        return perplexity_difference(nll + change + rng.normal(0, 0.02, count), nll, **FEW)

    return one


def images(count: int, flips: float, gained: float = 0.5) -> Simulate:
    """Answers of which a share turn, some of them for the better."""

    def one(rng: np.random.Generator) -> Difference:
        flipped, better = rng.random(count) < flips, rng.random(count) < gained
        floats = np.where(flipped, ~better, rng.random(count) < 0.8)
        return proportion_difference(floats ^ flipped, floats, **FEW)

    return one


def passages(rng: np.random.Generator) -> Difference:
    """2 to 9 questions about each of 40 passages: where a model errs, it errs about the whole passage."""
    names = np.repeat(np.arange(40), rng.integers(2, 10, 40))
    floats = rng.random(len(names)) < 0.7
    turned = rng.choice([-1, 0, 1], size=40, p=[0.3, 0.4, 0.3])[names]
    moved = (turned != 0) & (rng.random(len(names)) < 0.4)
    return proportion_difference(np.where(moved, turned > 0, floats), np.where(moved, turned < 0, floats), clusters=names, **FEW)


def documents(rng: np.random.Generator) -> Difference:
    """Scores with more large changes than a normal distribution has."""
    scores = rng.normal(0, 1, 100)
    return mean_difference(scores + rng.laplace(0, 0.1, 100), scores, **FEW)


@pytest.mark.parametrize(
    "simulate", [windows(16), windows(64), passages, documents], ids=["16 windows", "64 windows", "passages", "documents"]
)
def test_under_the_null_five_in_a_hundred_are_significant(simulate: Simulate) -> None:
    rng = np.random.default_rng(0)
    found = [simulate(rng) for _ in range(TIMES)]
    significant = [one.p <= 0.05 for one in found]
    outside = [not one.low <= 0 <= one.high for one in found]
    assert within_chance(sum(significant), 0.05), sum(significant)
    assert within_chance(sum(outside), 0.05), sum(outside)
    assert sum(np.array(significant) & ~np.array(outside)) <= 0.01 * TIMES  # the two hardly ever contradict each other


@pytest.mark.parametrize("simulate", [images(200, 0.05), images(1000, 0.03)], ids=["10 flips", "30 flips"])
def test_the_exact_test_is_never_too_bold(simulate: Simulate) -> None:
    rng = np.random.default_rng(0)
    found = [simulate(rng) for _ in range(TIMES)]
    significant = sum(one.p <= 0.05 for one in found)
    assert 0 < significant <= 0.05 * TIMES
    assert sum(one.low <= 0 <= one.high for one in found) >= 0.93 * TIMES


@pytest.mark.parametrize(("flips", "gained"), [(0.02, 0.1), (0.1, 0.2), (0.5, 0.02)])
def test_the_interval_of_a_share_holds_the_true_loss(flips: float, gained: float) -> None:
    rng, simulate = np.random.default_rng(0), images(300, flips, gained)
    truth = flips * (2 * gained - 1)
    held = sum(one.low <= truth <= one.high for one in (simulate(rng) for _ in range(TIMES)))
    assert held >= 0.935 * TIMES, held


def test_the_interval_of_perplexity_holds_the_true_change_where_a_percentile_bootstrap_is_too_narrow() -> None:
    rng = np.random.default_rng(0)
    truth = math.exp(2.7) * math.expm1(0.03)
    held = narrow = 0
    for _ in range(TIMES):
        nll = rng.normal(2.7, 0.25, 16)
        nll_q = nll + 0.03 + rng.normal(0, 0.02, 16)
        found = perplexity_difference(nll_q, nll, **FEW)
        held += found.low <= truth <= found.high
        draws = rng.integers(0, 16, size=(500, 16))
        low, high = np.quantile(np.exp(nll_q[draws].mean(1)) - np.exp(nll[draws].mean(1)), [0.025, 0.975])
        narrow += low <= truth <= high
    assert within_chance(held, 0.95), held
    assert narrow < 0.93 * TIMES, narrow


def test_what_is_called_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    error = math.exp(2.7) * 0.02 / math.sqrt(16)  # of a change of perplexity over 16 windows, where the test knows all signs
    detectable = np.median([windows(16)(rng).detectable for _ in range(200)])
    assert detectable == pytest.approx(3.0 * error, rel=0.05)  # 2.13 + 0.87, quantiles of Student's t
    simulate = windows(16, math.log1p(detectable / math.exp(2.7)))
    assert within_chance(sum(simulate(rng).p <= 0.05 for _ in range(TIMES)), 0.80)
