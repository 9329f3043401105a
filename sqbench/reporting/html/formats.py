"""The numbers that the formats of the results can hold, as lines on a common axis."""

from dataclasses import dataclass

from sqbench.formats.format import Format
from sqbench.formats.grid import grid
from sqbench.formats.named import bits_a_weight
from sqbench.formats.scheme import Scheme
from sqbench.reporting.formats import element_name
from sqbench.reporting.html.results import Results

WIDTH = 1000  # of the drawing, whose left and right ends are the largest magnitude


@dataclass(frozen=True)
class Drawn:
    """The numbers of a weight's format, with what tables tell of it.

    Attributes:
        names: of the schemes that have these weights.
        path: an SVG path with a line of height 1 for each number.
    """

    names: str
    weights: str
    element: str
    bits: str
    values: int
    path: str


def formats(results: Results) -> list[Drawn]:
    """The weights' formats of all points that have a grid, from many bits a weight to few."""
    named: dict[Format, list[str]] = {}
    for record in results.records.values():
        scheme = Scheme.from_dict(record.identity["scheme"])
        if scheme.weights is None or not scheme.weights.has_grid:
            continue
        if scheme.name not in (names := named.setdefault(scheme.weights, [])):
            names.append(scheme.name)
    ordered = sorted(named, key=lambda fmt: (-bits_a_weight(Scheme("", weights=fmt)), str(fmt)))
    return [_drawn(fmt, named[fmt]) for fmt in ordered]


def _drawn(fmt: Format, names: list[str]) -> Drawn:
    values = grid(fmt)
    places = ((values / values.abs().max() + 1) * WIDTH / 2).round(decimals=1).tolist()
    path = "".join(f"M{place:g} 0V1" for place in places)
    bits = f"{bits_a_weight(Scheme('', weights=fmt)):.3g}"
    return Drawn(", ".join(names), str(fmt), element_name(fmt), bits, len(values), path)
