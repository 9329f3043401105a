"""The cost of calibration relative to a forward pass, and its memory for growing data.

    python -m benchmarks.calibration calibration.windows=64              # time, against plain forward passes over the same tokens
    python -m benchmarks.calibration calibration.windows=256 memory=true  # peak memory and kept bytes, for a quarter and for all

Any override of sqbench.run works. Times alternate A B C A B C over pieces of eight windows. The table gives medians of the ratios.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import seconds
from sqbench import api
from sqbench.calibration import collect
from sqbench.console.quiet import quiet
from sqbench.models import Model
from sqbench.records.provenance import peak_rss_bytes, reset_peaks

PIECE = 8


@torch.no_grad()
def over(run: Callable[[Tensor], Tensor], windows: Tensor) -> None:
    for window in windows.split(1):
        run(window)


def ratios(model: Model, windows: Tensor) -> None:
    sites = model.topology.sites
    over(model.forward, windows[:2])
    collect(model.module, model.body, sites, windows[:2])
    rows = []
    for piece in windows.split(PIECE):
        whole = seconds(lambda piece=piece: over(model.forward, piece))
        body = seconds(lambda piece=piece: over(model.body, piece))
        observed = seconds(lambda piece=piece: collect(model.module, model.body, sites, piece))
        rows.append((observed / whole, observed / body, whole, body, observed))
    median = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{len(windows)} windows of {windows.shape[1]} tokens, {len(rows)} pieces, {torch.get_num_threads()} threads, medians")
    print(f"calibration, all statistics / plain forward pass             {median[0]:.2f}")
    print(f"calibration, all statistics / forward pass without its head  {median[1]:.2f}")
    forward, headless, observed = (value / PIECE for value in median[2:])
    print(f"seconds per window: forward {forward:.3f}, without head {headless:.3f}, calibration {observed:.3f}")


def memory(model: Model, windows: Tensor) -> None:
    sites = model.topology.sites
    collect(model.module, model.body, sites, windows[:2])
    for count in (len(windows) // 4, len(windows)):
        reset_peaks()
        found = collect(model.module, model.body, sites, windows[:count])
        kept = sum(tensor.nbytes for stats in found.inputs.values() for tensor in stats.tensors().values())
        print(f"{count} windows: peak RSS {peak_rss_bytes() / 1e6:.0f} MB, statistics {kept / 1e6:.2f} MB")
        del found


def main() -> None:
    quiet()
    asked = "memory=true" in sys.argv
    model, windows = api.load(*(override for override in sys.argv[1:] if not override.startswith("memory=")))
    (memory if asked else ratios)(model, windows.calibration)


if __name__ == "__main__":
    main()
