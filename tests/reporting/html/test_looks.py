"""Colours can be told from both backgrounds, series from each other."""

import itertools
import re

import pytest

from sqbench.config import CONF_DIR
from sqbench.recipes.configured import method_names
from sqbench.reporting.html import page
from sqbench.reporting.looks import _OTHERS, COLOURS, SHAPES, colour, faded, shape

STYLE = page._asset("page.css")


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def themes(name: str) -> tuple[str, str]:
    """A colour of the style sheet: by day and by night."""
    found = re.search(rf"--{name}: light-dark\((#\w{{6}}), (#\w{{6}})\)", STYLE)
    assert found
    return found[1], found[2]


def test_the_ratio_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("name", ["text", "quiet", "link", "good", "bad", "open"])
def test_texts_meet_aa_on_both_grounds_of_both_themes(name: str) -> None:
    for theme in (0, 1):
        for ground in ("back", "raised"):
            assert contrast(themes(name)[theme], themes(ground)[theme]) >= 4.5


def test_series_meet_aa_for_graphics_in_both_themes() -> None:
    series = (*COLOURS.values(), *_OTHERS)
    for one, ground in itertools.product(series, themes("back")):
        assert contrast(one, ground) >= 3.0, one
    assert len(set(series)) == len(series)


def test_every_method_and_format_has_looks_of_its_own() -> None:
    assert set(method_names()) <= set(COLOURS)
    assert {path.stem for path in (CONF_DIR / "bits").glob("*.yaml")} - {"auto"} <= set(SHAPES)
    assert len({shape.symbol for shape in SHAPES.values()}) == len({shape.marker for shape in SHAPES.values()}) == len(SHAPES)


def test_ones_own_method_looks_the_same_in_every_picture() -> None:
    assert colour("mine") == colour("mine")
    assert shape("mine") == shape("mine")
    assert faded("#102030", 0.5) == "rgba(16,32,48,0.5)"
