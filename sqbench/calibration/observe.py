"""The streaming pass: chosen collectors see every quantizable tensor of a model once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.calibration.routed import Routed, expert_of
from sqbench.calibration.shelf import Shelf, check_room, portions
from sqbench.console.progress import track
from sqbench.data.base import Batches
from sqbench.quant.operations import Point, visiting
from sqbench.statistics import OF_POINTS, Gram
from sqbench.statistics.base import Columns
from sqbench.statistics.extremes import Extremes
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.rows import ROWS
from sqbench.statistics.windows import observed

Names = frozenset[str]
Observer = Callable[[Names, Sequence[str], Batches, Sequence[Point], Shelf | None], dict[str, InputStatistics]]


class CalibrationError(Exception):
    """Calibration saw NaN or infinity, or no input at all."""


@torch.no_grad()
def observe(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    names: Names,
    sites: Sequence[str],
    batches: Batches,
    points: Sequence[Point] = (),
    shelf: Shelf | None = None,
) -> dict[str, InputStatistics]:
    """The statistics of every site's tensor, by the collectors `names` and no others.

    One pass is enough, unless Gram matrices take more than GRAM_BYTES. Further passes then collect only matrices. A mixture with
    experts that too few tokens reach needs one more pass, in which these read all tokens (`sqbench.calibration.routed`).

    Args:
        run: one forward pass over a batch. It may leave out the model's head.
        sites: names of layers. The first positional input of each is observed.
        points: tensors inside modules to observe too.
        shelf: takes every matrix when it is finished. The result has none then. Matrices that it already holds are not collected.

    Raises:
        CalibrationError: a layer saw NaN or infinity (the error names it), or there was nothing to calibrate on.
        UserError: the matrices do not fit into memory, and there is no shelf.
    """
    routed = Routed(module)
    found = _observed(module, run, names, sites, batches, points, shelf, routed)
    if few := [site for site in sites if routed.few(site)]:
        for site in few:
            found.pop(site, None)
        with routed.fed():
            found |= _observed(module, run, names, few, batches, (), shelf, None)
        for site in few:
            if site in found and isinstance(extremes := found[site].collectors.get("extremes"), Extremes):
                extremes.routed = routed.tokens[expert_of(site)]
    return found


def _observed(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    names: Names,
    sites: Sequence[str],
    batches: Batches,
    points: Sequence[Point],
    shelf: Shelf | None,
    routed: Routed | None,
) -> dict[str, InputStatistics]:
    """See `observe`. With `routed`, the first pass counts tokens, and matrices of experts with too few do not go to the shelf."""
    parts: list[list[str]] = []
    if "gram" in names:
        if shelf is None:
            check_room(module, sites)
        parts = portions(module, [site for site in sites if shelf is None or not shelf.holds(site)])
    plain, found = names - {"gram"}, dict[str, InputStatistics]()
    for number, part in enumerate(parts or [[]]):
        first = plain if number == 0 else frozenset()
        wanted = {site: own for site in sites if (own := first | (frozenset({"gram"}) if site in part else frozenset()))}
        inside = {point: own for point in points if (own := first & OF_POINTS)}
        if not wanted and not inside:
            continue
        with routed.counting() if routed is not None and number == 0 else nullcontext():
            seen = _pass(module, run, wanted, inside, batches)
        if not seen and number == 0:
            raise CalibrationError("no input to calibrate on: every example was corrupt")
        for site, one in seen.items():
            if routed is not None and routed.few(site):
                continue
            if shelf is not None and isinstance(gram := one.collectors.get("gram"), Gram):
                shelf.put(site, gram)
                del one.collectors["gram"]
            found[site] = found[site].extended(one) if site in found else one
    return found


def _pass(
    module: nn.Module,
    run: Callable[[Tensor], Any],
    wanted: Mapping[str, Names],
    inside: Mapping[Point, Names],
    batches: Batches,
) -> dict[str, InputStatistics]:
    """Statistics from one pass, by the collectors that each layer and each point wants."""
    found: dict[str, InputStatistics] = {}
    keep_rows = max(1, -(-ROWS // max(len(batches), 1)))

    def take(site: str, names: Names, x: Tensor, columns: Columns | None = None) -> None:
        if site not in found:
            found[site] = InputStatistics.empty(x.shape[-1], x.device, names, site)
        try:
            found[site].update(x, keep_rows, columns)
        except FloatingPointError as error:
            raise CalibrationError(f"{error} in the input of {site} during calibration") from error

    def watch(site: str, names: Names) -> Callable[..., None]:
        return lambda layer, args: take(site, names, *observed(layer, args[0]))

    def visit(point: Point, x: Tensor) -> Tensor:
        take(point.site, inside[point], point.rows(x))
        return x

    handles = [module.get_submodule(site).register_forward_pre_hook(watch(site, names)) for site, names in wanted.items()]
    try:
        with visiting(module, list(inside), visit):
            for batch in track(batches, "calibrate"):
                run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
