"""How figures look: colours that hold on white and on black, and a second and third sign for whoever sees none."""

from collections.abc import Sequence
from dataclasses import dataclass

# Each has 3:1 or more (WCAG 2.2, 1.4.11) against both backgrounds of page.css; neighbours differ in hue.
PALETTE = ("#2f7fd6", "#cf5f10", "#15936a", "#a763c9", "#b8860b", "#d6477f", "#0f93a8", "#7d8590", "#8a7a1a", "#d9534f")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagram")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GREY = PALETTE[7]


@dataclass(frozen=True)
class Looks:
    """A colour for each method, a symbol and a dash for each bit-width, the same in every figure."""

    methods: Sequence[str]
    bits: Sequence[str]

    def colour(self, method: str) -> str:
        return PALETTE[self.methods.index(method) % len(PALETTE)]

    def symbol(self, bits: str) -> str:
        return SYMBOLS[self.bits.index(bits) % len(SYMBOLS)]

    def dash(self, bits: str) -> str:
        return DASHES[self.bits.index(bits) % len(DASHES)]


def faded(colour: str, opacity: float) -> str:
    """`#rrggbb` as rgba."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
