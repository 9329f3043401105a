"""Range estimators on distributions like those in real networks: the distance of each from the best clipping range.

    python -m benchmarks.ranges                  # both tables; under a minute
    python -m benchmarks.ranges work=shapes      # decibels below the best range, shapes x estimators
    python -m benchmarks.ranges work=observer    # the histogram search and torch's HistogramObserver on heavy tails

An exhaustive search over the data finds the best range. It shares no arithmetic with sqbench.
"""

import math
import sys
import warnings
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import gelu

from benchmarks.timing import arguments, chosen
from sqbench.formats.codec import fake_quantize
from sqbench.formats.format import Format
from sqbench.formats.params import qparams
from sqbench.ranges import estimators
from sqbench.reporting.tables import markdown_table
from sqbench.statistics.inputs import InputStatistics

ROWS, CHANNELS = 400, 64
ESTIMATORS = (
    *(estimators.minmax, estimators.ema_minmax, estimators.mean_minmax, estimators.percentile),
    *(estimators.mse, estimators.histogram, estimators.entropy),
)
FORMATS = tuple(Format(bits, symmetric=symmetric) for symmetric in (True, False) for bits in range(3, 9))
UNSEEN = 1e-6  # share of the energy: an error this small (60 dB) lies within a bin of the histogram


def _normal(seed: int) -> Tensor:
    return torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def _uniform(seed: int) -> Tensor:
    return torch.rand(ROWS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def _rectified(zeros: float) -> Tensor:
    """Exact zeros, mixed with the positive half of a normal distribution."""
    return torch.where(_uniform(1) < zeros, 0, _normal(0).abs())


def _with_outliers(share: float, size: float, *, both: bool = True) -> Tensor:
    x = _normal(2)
    return torch.where(_uniform(3) < share, size * (x.sign() if both else 1), x)


def shapes() -> dict[str, Tensor]:
    """Name -> values [rows, channels]."""
    return {
        "normal": _normal(0) + 0.3,
        "50 % zeros": _rectified(0.5),
        "75 % zeros": _rectified(0.75),
        "95 % zeros": _rectified(0.95),
        "60 % zeros, capped": _rectified(0.6).clamp(max=1.0),  # ReLU6 has a spike at both ends
        "75 % zeros, long tail": _rectified(0.75) ** 4,
        "80 % zeros, two sides": torch.where(_uniform(4) < 0.8, 0, _normal(5)),
        "one side": -_uniform(6).clamp(min=1e-7).log(),
        "negative": _uniform(6).clamp(min=1e-7).log(),
        "GELU": gelu(2 * _normal(7)),
        "outliers": _with_outliers(1e-3, 30.0),
        "far outliers": _with_outliers(1e-4, 100.0),
        "outliers, one side": _with_outliers(1e-3, 30.0, both=False),
        "heavy tails": _normal(8) / _normal(9).abs().clamp(min=0.01),
        "two clusters": torch.where(_uniform(10) < 0.7, 0.1 * _normal(11), 10 + 0.1 * _normal(12)),
        "two clusters around 0": 5 * _normal(13).sign() + 0.2 * _normal(14),
        "integers": (4 * _normal(15).abs()).round(),
        "signed integers": (4 * _normal(16)).round(),
        "constant": torch.full((ROWS, CHANNELS), 3.1),
        "zeros and a constant": torch.where(_uniform(17) < 0.9, 0, torch.tensor(0.7)),
    }


def heavy_tailed() -> Iterator[tuple[str, Tensor]]:
    """30 samples of 20,000 values: Student's t with 1.5, 2 and 3 degrees of freedom, log-normal, and signed squares of Laplace."""
    for seed in range(6):
        torch.manual_seed(seed)
        for freedom in (1.5, 2.0, 3.0):
            yield f"t({freedom:g}), {seed}", torch.distributions.StudentT(freedom).sample((ROWS, 50))
        yield f"log-normal, {seed}", torch.distributions.LogNormal(0, 1).sample((ROWS, 50))
        laplace = torch.distributions.Laplace(0, 1).sample((ROWS, 50))
        yield f"Laplace^2, {seed}", laplace * laplace.abs()


def observed(x: Tensor, batch: int = 50) -> InputStatistics:
    """Statistics of x [rows, channels], seen `batch` rows at a time."""
    stats = InputStatistics.empty(x.shape[-1])
    for part in x.split(batch):
        stats.update(part)
    return stats


def squared_error(values: Tensor, lo: Tensor, hi: Tensor, fmt: Format) -> Tensor:
    """Sum of squared rounding errors of sorted float64 values, for K ranges: [K]. It adds up sums between thresholds per level.

    Scales are (hi - lo) / (2^b - 1), or max(|lo|, |hi|) / (2^(b-1) - 1) for symmetric formats.
    """
    count, total, squares = (torch.cat([values.new_zeros(1), values.pow(power).cumsum(0)]) for power in range(3))
    if fmt.symmetric:
        codes = torch.arange(1 - 2 ** (fmt.bits - 1), 2 ** (fmt.bits - 1), dtype=torch.float64)
        levels = torch.maximum(-lo, hi)[:, None] / codes[-1] * codes
    else:
        codes = torch.arange(2**fmt.bits, dtype=torch.float64)
        scale = (hi - lo)[:, None] / codes[-1]
        levels = scale * (codes + (lo[:, None] / scale).round())
    inner = torch.searchsorted(values, (levels[:, 1:] + levels[:, :-1]) / 2)
    bounds = torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=len(values))
    n, first, second = (part[bounds].diff(dim=1) for part in (count, total, squares))
    return (second - 2 * levels * first + levels.square() * n).sum(1)


@cache
def least_errors(shape: str, steps: int = 32) -> dict[Format, float]:
    """Format -> least squared error on a shape. The candidate ends are spaced evenly and geometrically over the data."""
    values = shapes()[shape].flatten().double().sort().values
    low, high = values[0].clamp(max=0), values[-1].clamp(min=0)
    parts = torch.cat([torch.arange(steps + 1) / steps, torch.logspace(-3, 0, steps)]).double().unique()
    found = {}
    for fmt in FORMATS:
        if fmt.symmetric:
            hi = torch.maximum(-low, high) * parts
            lo = -hi
        else:
            lo, hi = torch.cartesian_prod((low * parts).unique(), (high * parts).unique()).T
        some = lo < hi
        pieces = zip(lo[some].split(512), hi[some].split(512), strict=True)
        found[fmt] = min(float(squared_error(values, *piece, fmt).min()) for piece in pieces)
    return found


def shortfalls(shape: str, estimate: estimators.Estimator) -> dict[Format, float]:
    """Format -> decibels by which an estimator's signal-to-noise ratio is below that of the best range."""
    x = shapes()[shape]
    stats, values = observed(x), x.flatten().double().sort().values
    unseen = UNSEEN * float(values.square().sum())
    found = {}
    for fmt in FORMATS:
        lo, hi = (end.double().reshape(1) for end in estimate(stats, fmt))
        error = float(squared_error(values, lo, hi, fmt))
        found[fmt] = 10 * math.log10(max(error, unseen) / max(least_errors(shape)[fmt], unseen))
    return found


def against_observer() -> Iterator[tuple[str, float]]:
    """Sample and 8-bit format, symmetric and not -> our squared error over that of torch's HistogramObserver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization.observer import HistogramObserver

        for name, x in heavy_tailed():
            stats = observed(x)
            for fmt, scheme in (
                (Format(8, symmetric=False), torch.per_tensor_affine),
                (Format(8, convention="half_range"), torch.per_tensor_symmetric),  # torch's symmetric scale
            ):
                observer = HistogramObserver(dtype=torch.qint8, qscheme=scheme)
                for part in x.split(50):
                    observer(part)
                theirs = torch.fake_quantize_per_tensor_affine(x, *observer.calculate_qparams(), -128, 127)
                ours = fake_quantize(x, qparams(*estimators.histogram(stats, fmt), fmt), fmt)
                yield f"{name}, {fmt}", float((ours - x).double().square().sum() / (theirs - x).double().square().sum())


def shape_table() -> str:
    rows = []
    for shape in shapes():
        worst = [max((loss, str(fmt)) for fmt, loss in shortfalls(shape, estimate).items()) for estimate in ESTIMATORS]
        rows.append([shape, *(f"{loss:.1f} ({fmt.removesuffix(' tensor')})" for loss, fmt in worst)])
    return markdown_table(["dB below the best range, at the worst width", *(estimate.__name__ for estimate in ESTIMATORS)], rows, 1)


def observer_table() -> str:
    ratios = sorted(against_observer(), key=lambda entry: -entry[1])
    rows = [[name, f"{ratio:.4f}"] for name, ratio in (*ratios[:3], ratios[len(ratios) // 2], ratios[-1])]
    lower = sum(ratio < 1 for _, ratio in ratios)
    rows.append(["cases in which ours is lower", f"{lower} of {len(ratios)}"])
    return markdown_table(["our squared error over that of torch's HistogramObserver", "ratio"], rows, 1)


TABLES = {"shapes": shape_table, "observer": observer_table}

if __name__ == "__main__":
    own, _ = arguments(sys.argv[1:], work=list(TABLES))
    for name in chosen(own["work"], TABLES):
        print(TABLES[name]())
