"""Paired comparisons: what a difference is worth, given that both models saw the same examples. Pure functions on arrays."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SEED = 20221118


@dataclass(frozen=True)
class Difference:
    """A paired difference with its confidence interval.

    Attributes:
        value: the difference, model minus float; of a speed-up, how many times as fast as float.
        low, high: bounds of the interval; NaN with fewer than two examples.
        level: its coverage, 0.95 for example.
        n: examples.
        test: how it was made.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    test: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record; bounds that do not exist are None."""
        return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in asdict(self).items()}


def proportion_difference(
    correct: NDArray[np.bool_],
    correct_fp: NDArray[np.bool_],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """Share of correct examples, model minus float, with a percentile bootstrap interval over examples that both saw.

    Each example contributes -1, 0 or 1, so a resample is one multinomial draw of the three counts, whatever the number of examples.

    Args:
        correct, correct_fp: [examples] whether each was right.
    """
    assert correct.shape == correct_fp.shape
    assert correct.ndim == 1
    change = correct.astype(np.int64) - correct_fp.astype(np.int64)
    count = len(change)
    value = float(change.mean())
    if count < 2:
        return Difference(value, float("nan"), float("nan"), level, count, "paired bootstrap over images")
    shares = [float((change == outcome).mean()) for outcome in (-1, 0, 1)]
    draws = np.random.default_rng(seed).multinomial(count, shares, size=resamples)
    return _percentile(value, (draws[:, 2] - draws[:, 0]) / count, level, count, "paired bootstrap over images")


def perplexity_difference(
    nll: NDArray[np.float64],
    nll_fp: NDArray[np.float64],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """exp(mean nll) - exp(mean nll_fp) with a percentile bootstrap interval over windows, the same draw for both models.

    Args:
        nll, nll_fp: [windows] mean negative log-likelihood per token, windows of equal length.
    """
    assert nll.shape == nll_fp.shape
    assert nll.ndim == 1
    count = len(nll)
    value = float(np.exp(nll.mean()) - np.exp(nll_fp.mean()))
    if count < 2:
        return Difference(value, float("nan"), float("nan"), level, count, "paired bootstrap over windows")
    draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    differences = np.exp(nll[draws].mean(1)) - np.exp(nll_fp[draws].mean(1))
    return _percentile(value, differences, level, count, "paired bootstrap over windows")


def speedup(
    seconds: NDArray[np.float64],
    seconds_fp: NDArray[np.float64],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """How many times as fast as float: the median of seconds_fp / seconds, with a percentile bootstrap interval over repetitions.

    The ratio is taken inside each repetition, where both ran one after the other: what slows the machine down for longer cancels.

    Args:
        seconds, seconds_fp: [repetitions] positive.
    """
    assert seconds.shape == seconds_fp.shape
    assert seconds.ndim == 1
    ratios = seconds_fp / seconds
    count, value = len(ratios), float(np.median(ratios))
    if count < 2:
        return Difference(value, float("nan"), float("nan"), level, count, "paired bootstrap over repetitions")
    draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    return _percentile(value, np.median(ratios[draws], axis=1), level, count, "paired bootstrap over repetitions")


def _percentile(value: float, draws: NDArray[np.float64], level: float, count: int, test: str) -> Difference:
    """A difference with the central part of its bootstrap distribution for an interval."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Difference(value, float(low), float(high), level, count, test)
