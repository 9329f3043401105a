"""Correlations, F1 and Matthews' coefficient against scipy and scikit-learn, and the laws of their paired differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from sqbench.comparison import MEASURES, Outcome, association, association_difference
from sqbench.comparison.associations import _draws

SCORES = ("pearson", "spearman")
CLASSES = ("f1", "mcc")


def scores(count: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets that go together, with equal values among the targets."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 11, count) / 2
    return 1e-3 * (target + noise * rng.normal(size=count)) + 7, target


def labels(count: int, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, count)
    return np.where(rng.random(count) < 0.7, target, rng.integers(0, classes, count)), target


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 60), st.integers(0, 999))
def test_correlations_are_those_of_scipy(count: int, seed: int) -> None:
    values, target = scores(count, seed)
    values = values.round(4)  # ties on this side, too
    if np.ptp(values) == 0 or np.ptp(target) == 0:
        return
    assert association("pearson", values, target) == pytest.approx(stats.pearsonr(values, target).statistic, abs=1e-9)
    assert association("spearman", values, target) == pytest.approx(stats.spearmanr(values, target).statistic, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 60), st.integers(0, 999), st.integers(2, 4))
def test_measures_of_classes_are_those_of_scikit_learn(count: int, seed: int, classes: int) -> None:
    values, target = labels(count, seed, classes)
    seen = np.union1d(values, target)
    if not {0, 1} <= set(seen.tolist()):
        return
    average = "binary" if len(seen) == 2 else "macro"
    assert association("f1", values, target) == pytest.approx(metrics.f1_score(target, values, average=average, zero_division=0))
    assert association("mcc", values, target) == pytest.approx(metrics.matthews_corrcoef(target, values))


@pytest.mark.parametrize("kind", MEASURES)
def test_a_resample_is_the_measure_over_the_drawn_examples(kind: str) -> None:
    """Weights stand for copies: ranks and confusions of a resample are those of the sample that was drawn."""
    values, target = scores(25, 3) if kind in SCORES else labels(25, 3, 3)
    weights = np.concatenate(list(_draws(25, 20, seed=1)))
    assert weights.sum(1).tolist() == [25.0] * 20
    found = MEASURES[kind](values.astype(float), target.astype(float))(weights)
    for one, row in zip(found, weights.astype(int), strict=True):
        assert one == pytest.approx(association(kind, np.repeat(values, row), np.repeat(target, row)), abs=1e-9)


@pytest.mark.parametrize("kind", MEASURES)
def test_swapping_the_models_negates_the_difference(kind: str) -> None:
    values, target = scores(50, 1) if kind in SCORES else labels(50, 1)
    other = scores(50, 1, noise=3.0)[0] if kind in SCORES else np.where(np.arange(50) % 5 == 0, 1 - values, values)
    one = association_difference(kind, values, other, target, resamples=500)
    two = association_difference(kind, other, values, target, resamples=500)
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))
    assert (one.p, one.detectable) == pytest.approx((two.p, two.detectable))
    assert one.low < one.value < one.high


@pytest.mark.parametrize("kind", MEASURES)
def test_equal_models_do_not_differ(kind: str) -> None:
    values, target = scores(30, 2) if kind in SCORES else labels(30, 2)
    found = association_difference(kind, values, values, target, resamples=200)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_ranks_do_not_depend_on_the_scale_and_a_constant_has_no_correlation() -> None:
    values, target = scores(40, 5)
    assert association("spearman", np.exp(values), target) == pytest.approx(association("spearman", values, target), abs=1e-12)
    assert association("pearson", 1e-9 * values, target) == pytest.approx(association("pearson", values, target))
    assert association("pearson", np.full(40, 0.1), target) == association("spearman", np.full(40, 0.1), target) == 0
    assert association("mcc", np.zeros(40), target > 2) == 0


def test_one_example_has_no_interval() -> None:
    found = association_difference("pearson", [1.0], [2.0], [3.0])
    assert np.isnan(found.low)
    assert found.n == 1


def test_the_interval_holds_the_true_change_about_as_often_as_it_says() -> None:
    """400 simulated tables of 100 pairs; the true change of Spearman comes from 200,000 pairs of the same distribution."""

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        truth = rng.normal(size=count)
        own = truth + 0.8 * rng.normal(size=count)
        return own + 0.5 * rng.normal(size=count), own, truth

    whole = draw(np.random.default_rng(0), 200_000)
    true = association("spearman", whole[0], whole[2]) - association("spearman", whole[1], whole[2])
    held = 0
    for seed in range(1, 401):
        found = association_difference("spearman", *draw(np.random.default_rng(seed), 100), resamples=300)
        held += found.low <= true <= found.high
    assert 0.91 < held / 400 < 0.98


@pytest.mark.parametrize("kind", MEASURES)
def test_seeds_are_measured_apart_and_averaged(kind: str) -> None:
    (one, target), other = (scores(30, 6), scores(30, 6, 2.0)[0]) if kind in SCORES else (labels(30, 6), labels(30, 7)[0])
    mean = (association(kind, one, target) + association(kind, other, target)) / 2
    assert association(kind, np.stack([one, other]), target) == pytest.approx(mean)
    outcome = Outcome(kind, "own", ("row",), target="true")
    assert outcome.over_seeds([one, other]).shape == (2, 30)
    assert Outcome("mean", "own", ("row",)).over_seeds([one, other]).shape == (30,)


def test_an_outcome_with_a_target_survives_a_record() -> None:
    outcome = Outcome("spearman", "score", ("sentence",), target="target")
    assert Outcome.of(outcome.as_dict()) == outcome
    assert outcome.columns() == ["sentence", "score", "target"]
    assert "target" not in Outcome("mean", "score", ("sentence",)).as_dict()
