"""How often a 95 % interval holds the true change, over simulated comparisons: our intervals and the rejected ones.

    python -m benchmarks.coverage [data_sets=2000]    # every shape of changes and number of examples; ten minutes on one core
    python -m benchmarks.coverage shortfalls          # cases where ours hold less than they promise; a minute

The mean of every shape is known exactly. The interval of a ratio of perplexities is the exponentiated interval of the mean change
of the loss, and has the same coverage. Shares of 2,000 data sets have a standard error of half a percent.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from sqbench.comparison import Difference, mean_difference

Array = NDArray[np.float64]
Bounds = tuple[float, float]
COUNTS = (16, 30, 200)
RESAMPLES = 1000


@dataclass(frozen=True)
class Shape:
    """A distribution of changes over examples.

    Attributes:
        draw: (generator, count) -> changes.
        mean: the true mean of the changes.
        together: examples of a cluster, which share a part of their change and count as one.
    """

    draw: Callable[[np.random.Generator, int], Array]
    mean: float
    together: int = 1


def _sparse(inner: Callable[[np.random.Generator, int], Array], share: float = 0.2) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, count: np.where(rng.random(count) < share, inner(rng, count), 0.0)


SHAPES = {
    "normal": Shape(lambda rng, count: rng.normal(0.3, 1, count), 0.3),
    "heavy tails (t of 3 degrees)": Shape(lambda rng, count: 0.3 + rng.standard_t(3, count), 0.3),
    "heavier tails (t of 2 degrees)": Shape(lambda rng, count: 0.3 + rng.standard_t(2, count), 0.3),
    "skewed (exponential)": Shape(lambda rng, count: rng.exponential(1, count), 1.0),
    "very skewed (lognormal)": Shape(lambda rng, count: rng.lognormal(0, 1, count), math.exp(0.5)),
    "80 % zeros, normal": Shape(_sparse(lambda rng, count: rng.normal(0.5, 1, count)), 0.1),
    "80 % zeros, exponential": Shape(_sparse(lambda rng, count: rng.exponential(1, count)), 0.2),
    "80 % zeros, -1 or 1": Shape(_sparse(lambda rng, count: np.where(rng.random(count) < 0.75, 1.0, -1.0)), 0.1),
    "normal, in clusters of 4": Shape(
        lambda rng, count: np.repeat(rng.normal(0.3, 1, count // 4), 4) + rng.normal(0, 1, count // 4 * 4), 0.3, together=4
    ),
}


def ours(changes: Array, together: int = 1) -> Difference:
    """The difference and its interval, as in a record."""
    clusters = None if together == 1 else np.arange(len(changes)) // together
    return mean_difference(changes, np.zeros_like(changes), clusters=clusters, resamples=1)


def drawn(shape: Shape, count: int, data_sets: int) -> Iterator[Array]:
    """The changes of data sets with `count` independent units each."""
    rng = np.random.default_rng([2022, count])
    for _ in range(data_sets):
        yield shape.draw(rng, count * shape.together)


def held(shape: Shape, count: int, data_sets: int) -> float:
    """The share of data sets whose interval holds the true change."""
    found = [ours(changes, shape.together) for changes in drawn(shape, count, data_sets)]
    return sum(one.low <= shape.mean <= one.high for one in found) / data_sets


def tried(changes: Array, rng: np.random.Generator) -> dict[str, Bounds]:
    """The intervals of the kinds that were not chosen. sqbench used bootstrap-t before."""
    count, value = len(changes), float(changes.mean())
    u = changes - value
    error = math.sqrt((u**2).sum() / (count - 1) / count)
    quantile = float(stdtrit(count - 1, 0.975))
    plain = {"Student's t": (value - quantile * error, value + quantile * error)}
    if error == 0:
        return dict.fromkeys((*plain, "percentile", "BCa", "bootstrap-t", "stabilised"), (value, value))
    draws = rng.integers(0, count, size=(RESAMPLES, count)) + count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(draws.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    moved, squares = (times @ np.stack([u, u * u], axis=1) / count).T
    values, variances = value + moved, squares - moved**2
    errors = np.sqrt(np.maximum(variances, 0) / (count - 1))
    errors[errors < 1e-6 * error] = 0.0
    shift = ndtri(np.clip(((values < value).mean() + (values <= value).mean()) / 2, 1e-6, 1 - 1e-6))
    skew = float((u**3).sum() / (u**2).sum() ** 1.5)
    tails = shift + ndtri([0.025, 0.975])
    bca = np.quantile(values, ndtr(shift + tails / (1 - skew / 6 * tails)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values == value, 0.0, (values - value) / errors)
        # a scale on which the standard error does not depend on the value, if it is linear with this skewness
        bend = skew * error or 1e-12 * error
        stable = 2 / bend * (np.sqrt(np.maximum(error**2 + bend * (values - value), 0)) - error)
        spread = np.sqrt(np.maximum(error**2 + bend * (values - value), 0))
        steady = np.where(values == value, 0.0, stable * spread / errors)

    def back(y: float) -> float:
        root = max(y * bend / 2 + error, 0.0)
        return value + (root**2 - error**2) / bend

    low, high = _outer(ratios, quantile)
    left, right = _outer(steady, quantile)
    return {
        **plain,
        "percentile": tuple(np.quantile(values, [0.025, 0.975])),
        "BCa": tuple(bca),
        "bootstrap-t": (value - high * error, value - low * error),
        "stabilised": (back(-right), back(-left)),
    }


def _outer(ratios: Array, otherwise: float) -> Bounds:
    """Outer quantiles of the ratios. Student's are used if too many resamples hold one value alone, which has no spread."""
    ratios = np.where(np.isnan(ratios), np.inf, ratios)
    low, high = np.quantile(ratios, 0.025, method="lower"), np.quantile(ratios, 0.975, method="higher")
    return (float(low), float(high)) if np.isfinite([low, high]).all() else (-otherwise, otherwise)


def table(data_sets: int) -> None:
    """Print, for each shape and number of examples, how many of 100 intervals of each kind hold the true change."""
    names = ("Student's t", "percentile", "BCa", "stabilised", "bootstrap-t", "ours")
    print("| changes | n |", " | ".join(names), "| width |")  # width of ours as a share of bootstrap-t's
    print("| :--- | ---: |", " | ".join(["---:"] * len(names)), "| ---: |")
    for label, shape in SHAPES.items():
        for count in COUNTS:
            inside = dict.fromkeys(names, 0)
            widths = []
            rng = np.random.default_rng([7, count])
            for changes in drawn(shape, count, data_sets):
                found = ours(changes, shape.together)
                bounds = {**tried(changes.reshape(-1, shape.together).mean(1), rng), "ours": (found.low, found.high)}
                for name in names:
                    inside[name] += bounds[name][0] <= shape.mean <= bounds[name][1]
                before = bounds["bootstrap-t"][1] - bounds["bootstrap-t"][0]
                widths.append((found.high - found.low) / before if before else 1.0)
            shares = " | ".join(f"{100 * inside[name] / data_sets:.1f}" for name in names)
            print(f"| {label} | {count} | {shares} | {np.median(widths):.2f} |", flush=True)


def shortfalls(data_sets: int) -> None:
    """Print the coverage in % where few units differ, and where there are few units, as noted in `sqbench.comparison.intervals`."""
    for differing in (1, 2, 3, 4):
        for label in ("normal", "exponential", "-1 or 1"):
            draw = SHAPES[f"80 % zeros, {label}"]
            for count in (8, 30, 200):
                share = differing / count
                thin = Shape(partial(_thinned, draw.draw, share), draw.mean * share / 0.2)
                print(f"{differing} of {count} differ, {label}: {100 * held(thin, count, data_sets):.1f}", flush=True)
    for count in (3, 4, 5, 7, 8, 11, 12, 16, 19, 20, 30):
        shape = SHAPES["very skewed (lognormal)"]
        print(f"{count} examples, lognormal: {100 * held(shape, count, data_sets):.1f}", flush=True)


def _thinned(draw: Callable[[np.random.Generator, int], Array], share: float, rng: np.random.Generator, count: int) -> Array:
    """Changes of which the given share differs from 0, from a draw of which a fifth does."""
    changes = draw(rng, 40 * count)
    return np.where(rng.random(count) < share, changes[changes != 0][:count], 0.0)


if __name__ == "__main__":
    chosen = dict(word.partition("=")[::2] for word in sys.argv[1:])
    number = int(chosen.get("data_sets", 2000))
    shortfalls(number) if "shortfalls" in chosen else table(number)
