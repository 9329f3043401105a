"""Allocation of bits to groups of weights: the least total damage under an average width. Numbers only, no tensors."""

import itertools
from collections.abc import Mapping, Sequence

ROUNDING = 1e-9  # slack in bits per weight, so that an average of exactly the budget fits


def allocate(sizes: Sequence[int], damages: Sequence[Mapping[int, float]], budget: float) -> list[int]:
    """A width for each group, at most `budget` bits per weight on average, with little total damage.

    The search is greedy. Every group starts at its narrowest width. The step that saves most damage per bit is taken if it fits.
    Steps run along the lower convex hull of a group's damage over its width, where they save less and less per bit. Up to the first
    step that does not fit, this is the least damage for the bits spent (Shoham and Gersho, 1988). The bits left over go to smaller
    steps. The total exceeds the optimum by at most the saving of that first step.

    Args:
        sizes: the number of weights in each group.
        damages: width -> damage, for each group. Damages of groups add up.
        budget: at least the narrowest width.
    """
    assert len(sizes) == len(damages)
    widths = [min(damage) for damage in damages]
    left = budget * sum(sizes) - sum(size * width for size, width in zip(sizes, widths, strict=True)) + ROUNDING * sum(sizes)
    assert left >= 0, "the narrowest widths are above the budget"
    steps = []
    for group, (size, damage) in enumerate(zip(sizes, damages, strict=True)):
        hull = convex_hull(damage)
        steps += [((damage[a] - damage[b]) / (size * (b - a)), group, a, b) for a, b in itertools.pairwise(hull)]
    for _, group, start, stop in sorted(steps, key=lambda step: -step[0]):
        cost = sizes[group] * (stop - start)
        if widths[group] == start and cost <= left:  # else an earlier step of this group did not fit
            widths[group], left = stop, left - cost
    return widths


def convex_hull(damage: Mapping[int, float]) -> list[int]:
    """Widths on the lower convex hull of damage over width, from the narrowest to the width with the least damage.

    >>> convex_hull({2: 9.0, 3: 4.0, 4: 3.9, 6: 0.1, 8: 0.2})
    [2, 3, 6]
    """
    hull = [min(damage)]
    while True:
        last = hull[-1]
        slopes = {bits: (damage[last] - damage[bits]) / (bits - last) for bits in damage if bits > last}
        best = max(slopes, key=lambda bits: (slopes[bits], bits), default=last)
        if slopes.get(best, 0.0) <= 0:
            return hull
        hull.append(best)
