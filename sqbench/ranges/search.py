"""The range of least expected squared error. A grid over the whole data comes first, then its best places are refined."""

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, max_pool2d

from sqbench.formats.format import Format
from sqbench.ranges.density import Histogram, squared_errors

EVEN, GEOMETRIC = 32, 16  # candidates for one end. With heavy tails the best range ends far inside the data.
FINEST = 1e-3  # the smallest geometric candidate, as a share of the data's end
MINIMA = 8  # grid minima that are refined. The lowest point of the grid need not lie beside the lowest point of all.
ROUNDS, POINTS = 5, 9  # of refinement. The points along an axis are an odd number, so that the centre is one of them.


def search(histogram: Histogram, low: float, high: float, fmt: Format) -> tuple[Tensor, Tensor]:
    """The best (lo, hi) with low <= lo <= 0 <= hi <= high and lo < hi, 0-dim float32.

    A symmetric format has hi = -lo, and every bin edge is tried. An asymmetric format tries all pairs of ends. The ends are the
    edges of a histogram of few bins, else some evenly and some geometrically spaced values. The lowest local minima of that grid
    are refined between their neighbours. Each minimum stays one of its own candidates, so the result is at least as good as the
    grid. The idea to search both ends is from torch.ao's HistogramObserver. Its public version moves one end at a time, for 256
    levels at any bit-width.

    An empty range is not tried, because its scale would be 1 in any unit of the data.

    Args:
        low, high: the smallest and the largest value of the data, widened to contain 0. Not both 0.
    """
    edges = histogram.edges
    if fmt.symmetric:
        axes = [_ends(edges.abs(), max(-low, high))]
    else:
        axes = [-_few(_ends(-edges, -low)).flip(0), _few(_ends(edges, high))]

    def errors(points: Tensor) -> Tensor:
        lo, hi = (-points[:, 0], points[:, 0]) if fmt.symmetric else (points[:, 0], points[:, 1])
        found = squared_errors(histogram, lo.float(), hi.float(), fmt)
        return torch.where(lo < hi, found, torch.inf)

    grid, cell = (torch.cartesian_prod(*parts).view(-1, len(axes)) for parts in (axes, [_gaps(axis) for axis in axes]))
    starts = _minima(errors(grid).view([len(axis) for axis in axes]))
    centre, cell = grid[starts], cell[starts]
    least, most = grid[0], grid[-1]
    around = torch.cartesian_prod(*[torch.linspace(-1, 1, POINTS, dtype=torch.float64)] * len(axes)).view(-1, len(axes))
    for _ in range(ROUNDS):
        tried = torch.clamp(centre.unsqueeze(1) + around * cell.unsqueeze(1), least, most)
        error = errors(tried.flatten(0, 1)).view(tried.shape[:2])
        centre = tried[torch.arange(len(tried)), error.argmin(1)]
        cell = cell * 2 / (POINTS - 1)
    best = centre[error.amin(1).argmin()].float()
    return (-best[0], best[0]) if fmt.symmetric else (best[0], best[1])


def _ends(edges: Tensor, end: float) -> Tensor:
    """0, the end of the data, and the edges between them."""
    ends = edges.new_tensor([0.0, end])
    return torch.cat([edges[(edges > 0) & (edges < end)], ends]).unique()


def _few(values: Tensor) -> Tensor:
    """All of the sorted values if they are few. Else some of them, evenly spaced, and geometrically spaced ones up to the last."""
    if len(values) <= EVEN + GEOMETRIC:
        return values
    even = values[torch.linspace(0, len(values) - 1, EVEN).round().long()]
    return torch.cat([even, values[-1] * torch.logspace(math.log10(FINEST), 0, GEOMETRIC, dtype=torch.float64)]).unique()


def _gaps(axis: Tensor) -> Tensor:
    """The distance of every value to the farther one of its neighbours. 0 for a single value."""
    gaps = torch.nn.functional.pad(axis.diff(), (1, 1))
    return torch.maximum(gaps[:-1], gaps[1:])


def _minima(error: Tensor) -> Tensor:
    """Flat indices of the lowest local minima of a grid [N] or [N, M], at most MINIMA of them."""
    pool = max_pool1d if error.dim() == 1 else max_pool2d
    lowest = -pool(-error.unsqueeze(0), 3, stride=1, padding=1).squeeze(0)
    candidates = torch.where(error <= lowest, error, torch.inf).flatten()
    order = candidates.argsort(stable=True)[:MINIMA]
    return order[candidates[order] < torch.inf]
