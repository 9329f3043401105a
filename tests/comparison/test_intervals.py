"""Intervals: Student's t for symmetric data, Hall's transformation for skewed ones, and few examples that differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skew, t, ttest_1samp

from sqbench.comparison import mean_difference, shortfall
from sqbench.comparison.intervals import held, skewed_t

QUICK = {"resamples": 100}


def interval(change: np.ndarray) -> tuple[float, float]:
    found = mean_difference(change, np.zeros_like(change), **QUICK)
    return found.low, found.high


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_of_symmetric_changes_it_is_students(level: float) -> None:
    half = np.random.default_rng(0).normal(0, 1, 10)
    change = np.concatenate([0.3 + half, 0.3 - half])
    expected = ttest_1samp(change, 0).confidence_interval(level)
    found = mean_difference(change, np.zeros(20), level=level, **QUICK)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 40), st.integers(0, 999))
def test_it_is_never_narrower_than_students_and_reaches_towards_the_longer_tail(count: int, seed: int) -> None:
    change = np.random.default_rng(seed).exponential(1, count)
    (low, high), student = interval(change), ttest_1samp(change, 0).confidence_interval(0.95)
    slack = 1e-9 * np.abs(change).max()
    assert low <= student.low + slack
    assert high >= student.high - slack
    if skew(change) > 0.2:
        assert high > student.high
        assert low == pytest.approx(student.low)


def test_skewness_is_removed_as_hall_has_it() -> None:
    change = np.random.default_rng(5).exponential(1, 25)
    centred = change - change.mean()
    high = skewed_t(centred / 25, 25, 0.95)[1]
    error = change.std(ddof=1) / 5
    bend = skew(change, bias=False) / (3 * 5)
    statistic = -high / error  # at the bound, (mean - bound) / error; its transformation is the quantile
    assert statistic + bend * statistic**2 + bend**2 * statistic**3 / 3 + bend / 2 == pytest.approx(-t(24).ppf(0.975))


@pytest.mark.parametrize("size", [1e-150, 1e-9, 1e9])
def test_the_unit_does_not_matter(size: float) -> None:
    change = np.random.default_rng(0).exponential(1, 16)
    low, high = interval(change * size)
    assert (low / size, high / size) == pytest.approx(interval(change))


@pytest.mark.parametrize("differing", range(1, 12))
def test_changes_of_one_size_are_significant_where_the_exact_test_finds_them(differing: int) -> None:
    change = np.where(np.arange(200) < differing, 1.0, 0.0)
    found = mean_difference(change, np.zeros(200))
    assert (found.low > 0) == (found.p < 0.05) == (differing >= 6)
    assert found.differing == differing


def test_few_examples_that_differ_are_said() -> None:
    change = np.zeros(50)
    change[3] = 0.2
    said = mean_difference(change, np.zeros(50), **QUICK).as_dict()
    assert (said["differing"], said["held"]) == (1, 62)
    found = "95 % intervals held the true change in 62 of 100 simulated comparisons"
    assert shortfall(said) == f"Only 1 of 50 examples differs: where so few do, {found}"
    clusters = mean_difference(change, np.zeros(50), clusters=np.arange(50) // 5, **QUICK).as_dict()
    assert shortfall(clusters) == f"Only 1 of 10 groups of examples differs: where so few do, {found}"


def test_what_holds_as_it_promises_is_not_spoken_of() -> None:
    rng = np.random.default_rng(0)
    assert shortfall(mean_difference(rng.normal(0, 1, 20), np.zeros(20), **QUICK).as_dict()) == ""
    assert shortfall(mean_difference(np.zeros(40), np.zeros(40), **QUICK).as_dict()) == ""
    assert shortfall({"value": 0.1, "low": 0.0, "high": 0.2, "n": 4}) == ""  # a record of an earlier version does not know


def test_more_examples_and_more_that_differ_hold_better() -> None:
    by_units = [held(units, units) or 100 for units in range(2, 40)]
    by_differing = [held(40, differing) or 100 for differing in range(1, 40)]
    assert by_units == sorted(by_units)
    assert by_differing == sorted(by_differing)
