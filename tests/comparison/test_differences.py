"""Paired differences: their laws, and their tests against enumeration."""

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from sqbench.comparison import (
    Difference,
    holm,
    mean_difference,
    minimum_detectable,
    perplexity_difference,
    proportion_difference,
)
from sqbench.comparison.resampling import ENUMERATED, sign_flips
from sqbench.comparison.significance import mcnemar

Compare = Callable[..., Difference]
FEW = {"resamples": 200}
losses = arrays(np.float64, st.integers(2, 30), elements=st.floats(0.1, 5), unique=True)
both = pytest.mark.parametrize("compare", [mean_difference, perplexity_difference])


def other_side(values: np.ndarray, seed: int) -> np.ndarray:
    return values + np.random.default_rng(seed).normal(0.02, 0.1, len(values))


def answers(pairs: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    mine, floats = np.array(pairs, dtype=bool).T
    return mine, floats


def same(one: Difference, other: Difference, sign: float = 1.0) -> None:
    """Both say the same, up to the rounding of sums; with the sides swapped if sign is -1."""
    ends = (one.low, one.high) if sign > 0 else (-one.high, -one.low)
    assert (other.value, other.low, other.high) == pytest.approx((sign * one.value, *ends), rel=1e-6, abs=1e-9)
    assert (other.p, other.detectable) == pytest.approx((one.p, one.detectable), rel=1e-6, abs=1e-9)
    assert (other.n, other.clusters) == (one.n, one.clusters)


@settings(deadline=None, max_examples=30)
@given(values=losses, seed=st.integers(0, 99))
def test_swapping_the_sides_negates(values: np.ndarray, seed: int) -> None:
    other = other_side(values, seed)
    same(mean_difference(values, other, **FEW), mean_difference(other, values, **FEW), -1.0)


@settings(deadline=None, max_examples=30)
@given(values=losses, seed=st.integers(0, 99))
def test_swapping_the_sides_inverts_the_ratio_of_perplexities(values: np.ndarray, seed: int) -> None:
    other = other_side(values, seed)
    found, turned = perplexity_difference(values, other, **FEW), perplexity_difference(other, values, **FEW)
    ratios = [1 + number / math.exp(other.mean()) for number in (found.value, found.low, found.high)]
    inverse = [1 + number / math.exp(values.mean()) for number in (turned.value, turned.high, turned.low)]
    assert [1 / ratio for ratio in ratios] == pytest.approx(inverse)
    assert found.p == turned.p


@settings(deadline=None, max_examples=50)
@given(values=losses, seed=st.integers(0, 99), size=st.sampled_from([0.01, 1.0, 10.0, 300.0]))
def test_no_bound_reaches_below_a_perplexity_of_zero(values: np.ndarray, seed: int, size: float) -> None:
    broken = values + size * np.random.default_rng(seed).exponential(1, len(values))
    found = perplexity_difference(broken, values, **FEW)
    assert math.exp(values.mean()) + found.low >= 0
    assert found.low <= found.value <= found.high < math.inf
    assert 0 <= found.detectable < math.inf


def test_the_interval_of_a_perplexity_is_that_of_the_mean_loss() -> None:
    rng = np.random.default_rng(0)
    nll_fp, weights = rng.normal(2.7, 0.3, 40), rng.integers(1, 9, 40)
    nll = nll_fp + rng.exponential(0.1, 40)
    loss, found = mean_difference(nll, nll_fp, weights=weights), perplexity_difference(nll, nll_fp, weights=weights)
    perplexity_fp = math.exp(np.average(nll_fp, weights=weights))
    assert (found.low, found.high) == pytest.approx((perplexity_fp * math.expm1(loss.low), perplexity_fp * math.expm1(loss.high)))
    assert (found.p, found.differing, found.held) == (loss.p, loss.differing, loss.held)


@both
@settings(deadline=None, max_examples=30)
@given(values=losses, seed=st.integers(0, 99))
def test_the_order_of_examples_has_no_say(compare: Compare, values: np.ndarray, seed: int) -> None:
    other, order = other_side(values, seed), np.random.default_rng(seed).permutation(len(values))
    same(compare(values, other, **FEW), compare(values[order], other[order], **FEW))


@both
@settings(deadline=None, max_examples=20)
@given(values=losses)
def test_a_model_does_not_differ_from_itself(compare: Compare, values: np.ndarray) -> None:
    found = compare(values, values, **FEW)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


@both
@settings(deadline=None, max_examples=20)
@given(values=losses, seed=st.integers(0, 99))
def test_clusters_of_one_are_examples(compare: Compare, values: np.ndarray, seed: int) -> None:
    other, names = other_side(values, seed), np.random.default_rng(seed).permutation(len(values))
    same(compare(values, other, **FEW), compare(values, other, clusters=names, **FEW))


@both
@settings(deadline=None, max_examples=20)
@given(values=losses, seed=st.integers(0, 99))
def test_copies_of_an_example_in_one_cluster_say_nothing_new(compare: Compare, values: np.ndarray, seed: int) -> None:
    other, names = other_side(values, seed), np.arange(len(values))
    once, thrice = (
        compare(values, other, **FEW),
        compare(*(np.tile(side, 3) for side in (values, other)), clusters=np.tile(names, 3), **FEW),
    )
    assert (thrice.n, thrice.units) == (3 * len(values), len(values))
    assert (thrice.value, thrice.low, thrice.high, thrice.p) == pytest.approx((once.value, once.low, once.high, once.p), rel=1e-6)


@both
def test_weights_are_counts_of_equal_examples_in_one_unit(compare: Compare) -> None:
    values = np.random.default_rng(0).normal(2, 0.3, 12)
    other, weights = other_side(values, 0), np.arange(1, 13)
    repeated = np.repeat(np.arange(12), weights)
    whole = compare(values[repeated], other[repeated], clusters=repeated, **FEW)
    weighed = compare(values, other, weights=weights, **FEW)
    assert (weighed.value, weighed.low, weighed.high, weighed.p) == pytest.approx((whole.value, whole.low, whole.high, whole.p))
    same(weighed, compare(values, other, weights=weights * 511.0, **FEW))


def test_values_are_their_definitions() -> None:
    x, y, w = np.array([2.0, 3.0, 2.5]), np.array([1.9, 3.1, 2.2]), np.array([1.0, 2.0, 1.0])
    assert mean_difference(x, y).value == pytest.approx(0.1)
    assert mean_difference(x, y, weights=w).value == pytest.approx((0.1 - 0.2 + 0.3) / 4)
    expected = math.exp((2 + 6 + 2.5) / 4) - math.exp((1.9 + 6.2 + 2.2) / 4)
    assert perplexity_difference(x, y, weights=w).value == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(values=arrays(np.float64, st.integers(10, 30), elements=st.floats(1, 3)), shift=st.floats(-0.5, 0.5))
def test_a_shift_of_every_loss_has_its_sign_in_the_whole_interval(values: np.ndarray, shift: float) -> None:
    found = perplexity_difference(values + shift, values, **FEW)
    if shift > 1e-6:
        assert found.low > 0
    if shift < -1e-6:
        assert found.high < 0


def test_models_that_hardly_differ_have_an_interval_of_their_size() -> None:
    nll = np.random.default_rng(0).normal(2.7, 0.3, 40)
    moved = np.random.default_rng(1).normal(0, 1, 40)
    wide, narrow = (perplexity_difference(nll + scale * moved, nll, **FEW) for scale in (1e-3, 1e-9))
    assert (narrow.high - narrow.low) / (wide.high - wide.low) == pytest.approx(1e-6, rel=1e-3)


def test_pairing_sees_what_unpaired_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, size=32)  # windows differ far more from each other than the models do
    found = perplexity_difference(hard + 0.02 + rng.normal(0, 0.01, 32), hard)
    assert found.low > 0
    assert found.p < 0.001


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_examples_have_a_finite_interval_and_no_significance(count: int) -> None:
    nll = np.linspace(2, 3, count)
    found = perplexity_difference(nll + np.linspace(0.1, 0.2, count), nll)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.p == 2.0 ** (1 - count)


def test_one_example_has_no_interval() -> None:
    for found in (perplexity_difference([2.0], [1.5]), mean_difference([2.0, 2.0], [1.5, 1.0], clusters=np.zeros(2))):
        assert math.isnan(found.low)
        assert found.p == 1
        assert found.as_dict()["low"] is None
    assert math.isnan(proportion_difference(np.array([True]), np.array([False])).low)


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_is_the_share_of_coins_that_fall_as_unevenly(gained: int, lost: int) -> None:
    flips = gained + lost
    falls = [sum(coins) for coins in itertools.product((-1, 1), repeat=min(flips, 12))]
    if flips <= 12:
        assert mcnemar(gained, lost) == pytest.approx(np.mean([abs(fall) >= abs(gained - lost) for fall in falls]))
    if flips:
        assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, flips).pvalue)
    change = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 20)
    assert sign_flips(change, 100) == pytest.approx(mcnemar(gained, lost))


def test_random_signs_estimate_what_all_signs_give() -> None:
    change = np.random.default_rng(2).normal(0.35, 1, ENUMERATED)
    exact = sign_flips(change, 1)
    assert 0.05 < exact < 0.5
    more = np.concatenate([change, [1e-12, -1e-12]])  # two more units that weigh nothing: too many to enumerate
    assert sign_flips(more, 20_000) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_flips_are_counted_and_turn_around(pairs: list[tuple[bool, bool]]) -> None:
    mine, floats = answers(pairs)
    found, turned = proportion_difference(mine, floats), proportion_difference(floats, mine)
    same(found, turned, -1.0)
    assert found.value == pytest.approx(mine.mean() - floats.mean())
    assert (found.gained, found.lost) == (turned.lost, turned.gained)
    assert found.flip_rate == np.mean(mine != floats)
    assert found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12
    same(found, proportion_difference(mine, floats, clusters=np.arange(len(pairs))))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(100, 5000))
def test_interval_and_test_of_flips_agree(gained: int, lost: int, count: int) -> None:
    floats = np.arange(count) < lost
    mine = (np.arange(count) >= lost) & (np.arange(count) < lost + gained)
    found = proportion_difference(mine, floats)
    if found.p < 0.05:
        assert found.low > 0 or found.high < 0
    if found.p > 0.08:  # the exact test is the more cautious one
        assert found.low <= 0 <= found.high


def test_no_flip_is_no_certainty() -> None:
    found = proportion_difference(np.ones(1000, dtype=bool), np.ones(1000, dtype=bool))
    assert (found.value, found.p) == (0, 1)
    assert -0.005 < found.low < -0.002
    assert 0.003 < found.detectable < 0.006


def test_answers_about_one_passage_are_one_observation() -> None:
    rng = np.random.default_rng(0)
    passages = np.repeat(np.arange(20), 10)
    floats = rng.random(200) < 0.7
    mine = np.where(np.isin(passages, [3, 7, 11]), False, floats)  # everything about three passages is lost
    apart, together = proportion_difference(mine, floats), proportion_difference(mine, floats, clusters=passages)
    assert apart.p < 1e-4
    assert together.p == 0.25  # three passages moved: 2 of 2^3 signs are as uneven
    assert (together.clusters, together.units, together.n) == (20, 20, 200)
    assert (together.gained, together.lost) == (0, apart.lost)
    assert together.high - together.low > apart.high - apart.low


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(deadline=None)
@given(p_values)
def test_holm_corrects_upwards_and_keeps_the_order(raw: list[float]) -> None:
    adjusted = holm(raw)
    assert all(before <= after <= 1 for before, after in zip(raw, adjusted, strict=True))
    ordered = adjusted[np.argsort(raw, kind="stable")]
    assert (np.diff(ordered) >= 0).all()
    assert adjusted[int(np.argmin(raw))] == min(1.0, len(raw) * min(raw))


@settings(deadline=None)
@given(p_values, st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(raw: list[float], alpha: float) -> None:
    rejected, left = set(), len(raw)
    for place in np.argsort(raw, kind="stable"):
        if left * raw[place] > alpha:
            break
        rejected.add(int(place))
        left -= 1
    assert {place for place, p in enumerate(holm(raw)) if p <= alpha} == rejected


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.04, 0.03])
    assert adjusted[[0, 2, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(adjusted[1])
    assert len(holm([])) == 0


def test_fewer_examples_detect_less() -> None:
    assert minimum_detectable(1.0, 0.95) == pytest.approx(2.8016, abs=1e-4)  # 1.960 + 0.842
    assert minimum_detectable(1.0, 0.95, 16) > minimum_detectable(1.0, 0.95, 100) > minimum_detectable(1.0, 0.95)
    assert minimum_detectable(1.0, 0.99) > minimum_detectable(1.0, 0.95)


def test_the_same_twice() -> None:
    nll = np.linspace(1, 2, 40)
    assert perplexity_difference(nll + nll**2 / 9, nll) == perplexity_difference(nll + nll**2 / 9, nll)


def test_memory_stays_bounded_however_many_examples() -> None:
    x = np.random.default_rng(0).normal(2, 1, 30_000)
    tracemalloc.start()
    mean_difference(x + 0.1, x, resamples=300)  # 72 MB of draws, were they there at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def test_plain_data_for_records() -> None:
    def keys(found: Difference) -> set[Any]:
        return set(found.as_dict())

    shared = {"value", "low", "high", "level", "n", "test", "p", "detectable"}
    flips = {"gained", "lost", "flip_rate"}
    assert keys(mean_difference(np.arange(40.0), np.zeros(40) - 1)) == shared
    assert keys(mean_difference([1.0, 2.0], [2.0, 2.0])) == shared | {"differing", "held"}
    assert keys(proportion_difference(*answers([(True, False), (True, True)]))) == shared | flips
    clustered = proportion_difference(*answers([(True, False)] * 4), clusters=np.array([0, 0, 1, 1]))
    assert keys(clustered) == shared | flips | {"clusters", "held"}
