"""How often intervals hold the true change, counted over simulated comparisons; the whole table is in docs/tables.md."""

import math

import pytest

from benchmarks.coverage import COUNTS, SHAPES, drawn, held
from sqbench.comparison import intervals

TIMES = 2000
SHORT = {  # what tables say of them
    ("very skewed (lognormal)", 16): 0.92,
    ("80 % zeros, exponential", 16): 0.92,
}
SAFE = {  # Student's t itself holds more than it promises: heavy tails, and changes that hardly ever fall to one side
    *(("80 % zeros, exponential", 30), ("80 % zeros, -1 or 1", 30), ("80 % zeros, exponential", 200)),
    *(("heavier tails (t of 2 degrees)", count) for count in COUNTS),
}


def test_shapes_have_the_means_that_they_are_said_to_have() -> None:
    for shape in SHAPES.values():
        if shape is not SHAPES["heavier tails (t of 2 degrees)"]:  # without a variance a million draws tell little
            (changes,) = drawn(shape, 1_000_000 // shape.together, 1)
            spread = changes.std() * math.sqrt(shape.together / 1_000_000)
            assert changes.mean() == pytest.approx(shape.mean, abs=5 * spread)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("label", SHAPES)
def test_intervals_hold_the_true_change_in_93_to_97_of_100(label: str, count: int) -> None:
    chance = 3 * math.sqrt(0.95 * 0.05 / TIMES)  # of the count
    found = held(SHAPES[label], count, TIMES)
    assert found >= SHORT.get((label, count), 0.93) - chance
    assert found <= (0.985 if (label, count) in SAFE else 0.97) + chance


@pytest.mark.slow
def test_what_tables_say_of_few_examples_is_what_happens() -> None:
    for units in (4, 7, 11, 16):
        said = intervals.held(units, units)
        assert said is not None
        found = held(SHAPES["very skewed (lognormal)"], units, TIMES)
        assert found == pytest.approx(said / 100, abs=0.02)
