"""The cache of statistics: one file for each collector, and for each Gram matrix. Only what is missing is collected."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.calibration.collect import Statistics, as_batches, replay_sample
from sqbench.calibration.observe import Names, Observer
from sqbench.calibration.shelf import Shelf
from sqbench.data.base import Batches
from sqbench.quant.operations import Point
from sqbench.statistics import COLLECTORS, OF_POINTS, Collector, complete
from sqbench.statistics.inputs import InputStatistics
from sqbench.storage import tensorfile
from sqbench.storage.files import digest
from sqbench.storage.locks import turn

log = logging.getLogger(__name__)

VERSION = 3  # of the collected statistics, part of the cache key

BySite = dict[str, Collector]


def collect_cached(
    observer: Observer,
    sites: Sequence[str],
    inputs: Tensor | Batches,
    search: int,
    points: Sequence[Point] = (),
    needs: Iterable[str] | None = None,
    *,
    fingerprint: str,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
) -> Statistics:
    """The statistics of an observer. What `folder` has from the same model and the same inputs is read, and not collected again.

    Layers and points have separate cache files, so the observer may run once for each.

    Args:
        observer: `observe` for one model.
        needs: names of collectors. None is everything except `gram`.
        fingerprint, dtype, device: those of the model. They are part of the cache key.
    """
    batches = as_batches(inputs, sealed=True)
    asked = complete(needs)
    found: dict[str, InputStatistics] = {}
    for wanted, inside, names in ((list(sites), [], asked), ([], list(points), asked & OF_POINTS)):
        places = wanted or [point.site for point in inside]
        if not places:
            continue
        key = {
            "version": VERSION,
            "model": fingerprint,
            "batches": batches.fingerprint,
            "sites": places,
            "dtype": str(dtype),
            "device": device.type,
        }

        def missing(
            names: Names, shelf: Shelf, wanted: list[str] = wanted, inside: list[Point] = inside
        ) -> dict[str, InputStatistics]:
            return observer(names, wanted, batches, inside, shelf)

        found |= _complete(folder / digest(key)[:16], key, places, names, device, missing)
    return Statistics(found, replay_sample(batches, search), seen=batches)


def _complete(
    place: Path,
    key: dict[str, Any],
    sites: Sequence[str],
    names: Names,
    device: torch.device,
    collect: Callable[[Names, Shelf], dict[str, InputStatistics]],
) -> dict[str, InputStatistics]:
    """Statistics by the collectors `names`, from files whose names begin as `place`. One process collects while others wait."""
    shelf = Shelf(place.with_name(f"{place.name}-gram"), key, device)
    found: dict[str, BySite] = {}

    def path(name: str) -> Path:
        return place.with_name(f"{place.name}-{name}.safetensors")

    def look() -> Names:
        """Read the files that are there. Return the names of collectors without one."""
        for name in sorted(names - {"gram"} - found.keys()):
            if (content := tensorfile.whole(path(name))) is not None:
                found[name] = _by_site(name, content[0], device)
        absent = names - {"gram"} - found.keys()
        seen = found.get("extremes", sites)  # a layer that no input reaches has no file
        return absent | {"gram"} if "gram" in names and not all(map(shelf.holds, seen)) else absent

    if look():
        with turn(place.with_name(f"{place.name}.claim"), place.parent.name):
            if absent := look():  # what another process has not collected while we waited
                collected = collect(absent, shelf)
                for name in sorted(absent - {"gram"}):
                    found[name] = {site: one.collectors[name] for site, one in collected.items()}
                    tensors = {
                        f"{site}/{part}": value for site, one in found[name].items() for part, value in one.tensors().items()
                    }
                    tensorfile.save(path(name), tensors, key | {"collector": name})
                    log.debug("%s: computed", path(name))
    if "gram" in names:
        found["gram"] = {site: shelf.stored(site) for site in found["extremes"]}
    return {
        site: InputStatistics({name: found[name][site] for name in COLLECTORS if name in found}, site)
        for site in sites
        if site in found["extremes"]
    }


def _by_site(name: str, tensors: dict[str, Tensor], device: torch.device) -> BySite:
    """The collectors of all sites from the tensors of a file."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        site, _, part = key.rpartition("/")
        parts.setdefault(site, {})[part] = value.to(device) if value.dim() else value
    return {site: COLLECTORS[name].from_tensors(own) for site, own in parts.items()}
