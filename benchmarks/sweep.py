"""The cost of a sweep in units of plain evaluations: six points over six evaluations with transformers alone.

    python -m benchmarks.sweep
    python -m benchmarks.sweep backend=int repetitions=3
    python -m benchmarks.sweep data.windows=4 calibration.windows=4    # any override of sqbench.run; fixed costs show

Each sweep runs in its own process and folder, without a cache. Its time includes the start of Python, loading, tokenising,
calibrating and writing. The plain evaluations (float32, eager, the same windows, full logits) count without loading. Both take
turns. Peak memory is that of the whole process.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import arguments, child, show
from sqbench.errors import UserError

SWEEP = ("method=smoothquant,awq", "alpha=0.3,0.5,0.8")
POINTS = 6


def measure(own: dict[str, Any], others: list[str], folder: Path) -> list[list[str]]:
    """The rows of the table: quantity, plain, sweep and ratio."""
    plain, peaks, sweeps, sweep_peaks = [], [], [], []
    child("-m", "benchmarks.plain", "prepare", str(folder / "plain"), *others)
    for turn in range(own["repetitions"] + 1):  # plain, sweep, plain, sweep, ..., plain
        _, peak, said = child("-m", "benchmarks.plain", "evaluate", str(folder / "plain"))
        plain.append(json.loads(said.splitlines()[-1])["seconds"])
        peaks.append(peak)
        if turn < own["repetitions"]:
            place = folder / f"results-{turn}"
            options = [f"results_dir={place}", f"backend={own['backend']}", "tracker=none", *others]
            spent, peak, _ = child("-m", "sqbench.run", "-m", *SWEEP, *options)
            sweeps.append(spent)
            sweep_peaks.append(peak)
            if (points := len(list(place.glob("runs/*/record.json")))) != POINTS:
                sys.exit(f"the sweep left {points} records instead of {POINTS}")
    six, whole = POINTS * statistics.median(plain), statistics.median(sweeps)
    memory, sweep_memory = statistics.median(peaks), statistics.median(sweep_peaks)
    return [
        ["six points / six plain evaluations", f"{six:.1f} s", f"{whole:.1f} s", f"{whole / six:.2f}"],
        ["peak memory", f"{memory / 1e9:.2f} GB", f"{sweep_memory / 1e9:.2f} GB", f"{sweep_memory / memory:.2f}"],
    ]


def main() -> None:
    try:
        own, others = arguments(sys.argv[1:], backend="sim", repetitions=1)
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(own, others, Path(folder))
    except UserError as error:
        sys.exit(f"error: {error}")
    show(["", "plain", f"sweep, backend={own['backend']}", "ratio"], rows, sides=1)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
