"""Formats side by side: what a weight takes, which numbers it can be, and what other tools call the scheme."""

from collections.abc import Iterable

from rich import box
from rich.table import Table

from sqbench.formats.format import Format
from sqbench.formats.grid import grid
from sqbench.formats.named import bits_a_weight
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import CALLED


def formats_table(schemes: Iterable[Scheme]) -> Table:
    """A row for each scheme: bits a weight, both formats, the number of values, how far they reach, and names in other tools."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("bits=", no_wrap=True)
    table.add_column("bits a weight", justify="right")
    for title in ("weights", "inputs"):
        table.add_column(title, overflow="fold")
    for title in ("values", "largest", "smallest"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("elsewhere", overflow="fold")
    for scheme in schemes:
        shown = scheme.weights or scheme.activations
        assert shown is not None
        formats = (str(fmt) if fmt is not None else "float" for fmt in (scheme.weights, scheme.activations))
        table.add_row(scheme.name, f"{bits_a_weight(scheme):.3g}", *formats, *reach(shown), ", ".join(names_elsewhere(scheme.name)))
    return table


def reach(fmt: Format) -> tuple[str, str, str]:
    """How many numbers an element has, the largest one, and the smallest one above 0, in steps of the scale."""
    values = grid(fmt)
    positive = values[values > 0]
    return str(len(values)), f"{float(values[-1]):.6g}", f"{float(positive[0]):.3g}"


def names_elsewhere(name: str) -> list[str]:
    """What other tools call a scheme: `W8A8 (compressed-tensors)`."""
    found = []
    for theirs, words in CALLED.items():
        ours, _, tool = words.removeprefix("bits=").partition(" bits.as=")
        if ours == name:
            found.append(f"{theirs} ({tool})" if tool else theirs)
    return found


def element_name(fmt: Format) -> str:
    """The element of a format: `int4 with zero-point`, `e2m1`."""
    if not fmt.is_integer:
        return fmt.element
    return f"int{fmt.bits}" + ("" if fmt.symmetric else " with minimum" if fmt.has_minimum else " with zero-point")
