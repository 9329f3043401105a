"""The seconds of fake quantization in each format, divided by those of int8 per channel.

    python -m benchmarks.formats                       # a weight of 2048 x 8192; under a minute
    python -m benchmarks.formats rows=4096 columns=4096 repetitions=9

The formats take turns. The table gives medians of the ratios inside a round.
"""

import sys

import torch

from benchmarks.timing import alternate, arguments, medians, show, speedups
from sqbench.errors import UserError
from sqbench.formats.codec import round_trip
from sqbench.formats.named import schemes

BASE = "w8a16"


def main() -> int:
    try:
        own, others = arguments(sys.argv[1:], rows=2048, columns=8192, repetitions=7)
        if others:
            raise UserError(f"{others[0]}: known: columns, repetitions, rows")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    weight = torch.randn(own["rows"], own["columns"], generator=torch.Generator().manual_seed(0))
    formats = {name: scheme.weights for name, scheme in schemes().items() if scheme.weights is not None}
    different = {fmt: name for name, fmt in reversed(formats.items())} | {formats[BASE]: BASE}  # some schemes share a format
    sides = {name: (lambda fmt=fmt: round_trip(weight, fmt)) for fmt, name in different.items()}
    times = alternate(sides, own["repetitions"])
    faster, spent = speedups(times, BASE), medians(times)
    rows = [[name, str(formats[name]), f"{1 / faster[name]:.2f}", f"{1000 * spent[name]:.0f}"] for name in formats if name in sides]
    show(["bits", "weights", f"seconds / {BASE}", "ms"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
