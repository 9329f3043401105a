"""Bits under a budget: never above it, and hardly worse than the best of all choices."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.pipeline.allocation import allocate, convex_hull

WIDTHS = (2, 3, 4, 6)
groups = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.floats(0, 100), min_size=len(WIDTHS), max_size=len(WIDTHS))), min_size=1, max_size=5
)


def bits_of(sizes: list[int], widths: tuple[int, ...] | list[int]) -> int:
    return sum(size * width for size, width in zip(sizes, widths, strict=True))


def damage_of(damages: list[dict[int, float]], widths: tuple[int, ...] | list[int]) -> float:
    return sum(damage[width] for damage, width in zip(damages, widths, strict=True))


@given(groups, st.floats(min(WIDTHS), max(WIDTHS)))
def test_at_most_a_step_above_the_best_of_all_choices(drawn: list[Any], budget: float) -> None:
    sizes, damages = [size for size, _ in drawn], [dict(zip(WIDTHS, values, strict=True)) for _, values in drawn]
    widths = allocate(sizes, damages, budget)
    assert bits_of(sizes, widths) <= budget * sum(sizes) + 1e-6
    fitting = [
        every for every in itertools.product(WIDTHS, repeat=len(sizes)) if bits_of(sizes, every) <= budget * sum(sizes) + 1e-6
    ]
    best = min(damage_of(damages, every) for every in fitting)
    hulls = [convex_hull(damage) for damage in damages]
    step = max(
        (damage[a] - damage[b] for damage, hull in zip(damages, hulls, strict=True) for a, b in itertools.pairwise(hull)),
        default=0.0,
    )
    assert best - 1e-9 <= damage_of(damages, widths) <= best + step + 1e-9


@given(groups, st.integers(0, 20))
def test_the_best_there_is_where_the_last_step_fits_exactly(drawn: list[Any], steps: int) -> None:
    sizes, damages = [size for size, _ in drawn], [dict(zip(WIDTHS, values, strict=True)) for _, values in drawn]
    every = [
        ((damage[a] - damage[b]) / (size * (b - a)), size * (b - a))
        for size, damage in zip(sizes, damages, strict=True)
        for a, b in itertools.pairwise(convex_hull(damage))
    ]
    spent = sum(cost for _, cost in sorted(every, reverse=True)[:steps]) + min(WIDTHS) * sum(sizes)
    budget = spent / sum(sizes)
    choices = itertools.product(WIDTHS, repeat=len(sizes))
    best = min(damage_of(damages, one) for one in choices if bits_of(sizes, one) <= spent)
    if len({gain for gain, _ in every}) == len(every):  # among equal gains any order is as good, and another may fit
        assert damage_of(damages, allocate(sizes, damages, budget)) == pytest.approx(best, abs=1e-9)


def test_bits_go_where_they_save_most() -> None:
    falls = {2: 16.0, 3: 4.0, 4: 1.0}
    assert allocate([1, 1], [falls, {bits: 10 * value for bits, value in falls.items()}], 3) == [2, 4]
    assert allocate([100, 1], [falls, falls], 2.02) == [2, 4]  # the small group is the cheaper place
    assert allocate([1, 1], [falls, falls], 2) == [2, 2]
    assert allocate([1, 1], [falls, falls], 4) == [4, 4]


def test_more_bits_that_do_more_damage_are_not_taken() -> None:
    assert allocate([1], [{4: 1.0, 6: 2.0, 8: 0.5}], 7) == [4]
    assert allocate([1], [{4: 1.0, 6: 2.0, 8: 0.5}], 8) == [8]
    assert allocate([1, 1], [{2: 0.0, 8: 0.0}, {2: 5.0, 8: 1.0}], 8) == [2, 8]
