"""Paired bootstrap: laws, and coverage by simulation."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sqbench.evaluation.statistics import perplexity_difference

losses = arrays(np.float64, st.integers(2, 30), elements=st.floats(0.1, 5))


@settings(deadline=None, max_examples=30)
@given(nll=losses, shift=st.floats(-0.5, 0.5))
def test_interval_contains_the_difference_and_has_its_sign_for_a_constant_shift(nll: np.ndarray, shift: float) -> None:
    found = perplexity_difference(nll + shift, nll, resamples=500)
    assert found.value == np.exp((nll + shift).mean()) - np.exp(nll.mean())
    slack = 1e-9 * (1 + abs(found.value))
    assert found.low - slack <= found.high + slack
    if shift > 1e-6:
        assert found.low > 0
    if shift < -1e-6:
        assert found.high < 0
    assert found.n == len(nll)


def test_pairing_sees_what_unpaired_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, size=32)  # windows differ far more from each other than the models do
    found = perplexity_difference(hard + 0.02 + rng.normal(0, 0.01, 32), hard)
    assert found.low > 0


def test_coverage_under_the_null_is_near_nominal() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        base = rng.normal(2, 0.3, size=40)
        found = perplexity_difference(base + rng.normal(0, 0.05, 40), base, resamples=400)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98  # 95 % nominal; the percentile bootstrap is a little narrow at n = 40


def test_one_window_has_no_interval() -> None:
    found = perplexity_difference(np.array([2.0]), np.array([1.5]))
    assert math.isnan(found.low)
    assert found.as_dict()["low"] is None
    assert found.as_dict()["n"] == 1


def test_seeded() -> None:
    nll = np.linspace(1, 2, 16)
    assert perplexity_difference(nll + 0.1, nll) == perplexity_difference(nll + 0.1, nll)
